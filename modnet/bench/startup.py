"""How soon the command line answers, and how much memory the demo takes: each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from modnet.bench.networks import fashion_mnist
from modnet.bench.pairs import Aim, Call, Finding, Measure, Skipped, compare

HELP, VALIDATE = Aim("most", 0.15, "seconds"), Aim("most", 0.3, "seconds")
DEMO, DEMO_GIGABYTES = ("fashion-mnist/demo",), Aim("most", 2.0, "value")

TELLING = (
    "import sys; from modnet.cli.main import main; code = main(sys.argv[1:]); "
    "print(); print(open('/proc/self/status').read()); sys.exit(code)"
)


def startup(repeats: int) -> list[Finding]:
    """``modnet --help`` and ``modnet validate`` against starting Python with the libraries that they need."""
    bare = ("import typer", python("-c", "import typer"))
    libraries = ("import typer, pydantic, yaml", python("-c", "import typer, pydantic, yaml"))
    validate = python("-m", "modnet", "validate", "fashion-mnist/m2mkd")
    return [
        compare("startup --help", ("modnet --help", python("-m", "modnet", "--help")), bare, repeats, HELP),
        compare("startup validate", ("modnet validate", validate), libraries, repeats, VALIDATE),
    ]


def python(*arguments: str) -> Call:
    """A call that runs Python with some arguments; compiled modules are kept, as Python does unless told otherwise."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=kept)


def memory(repeats: int) -> list[Finding]:
    """The largest resident memory of the demo, from its first stage to its table; minutes, and once is enough."""
    if fashion_mnist() is None:
        return [Skipped("memory", "Fashion-MNIST is not here")]
    if not Path("/proc/self/status").exists():
        return [Skipped("memory", "this system does not tell a process's peak memory under /proc")]
    with tempfile.TemporaryDirectory() as runs:
        peak = peak_bytes(["train", *DEMO, "--runs", runs])
    return [Measure("memory", f"peak memory of modnet train {' '.join(DEMO)}", "GB", (peak / 1e9,), DEMO_GIGABYTES)]


def peak_bytes(words: list[str]) -> int:
    """Run a modnet command; the largest resident memory of its process. Raises CalledProcessError if it fails.

    The process reads it itself: what the system counts for a child that has ended includes its parent's at the fork.
    """
    done = subprocess.run([sys.executable, "-c", TELLING, *words], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
