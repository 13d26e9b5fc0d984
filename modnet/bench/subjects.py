"""What is measured, by name: each subject gives comparisons; baselines are written plainly and fairly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from modnet.bench.modules import modules
from modnet.bench.moe import moe
from modnet.bench.pairs import Comparison, compare
from modnet.bench.scaling import scaling
from modnet.bench.steps import checkpoint, loader, step
from modnet.bench.teachers import teacher_cache


def startup(repeats: int) -> list[Comparison]:
    """``modnet --help`` and ``modnet validate`` against starting Python with the libraries that they need."""

    def python(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    bare = ("import typer", python("-c", "import typer"))
    libraries = ("import typer, pydantic, yaml", python("-c", "import typer, pydantic, yaml"))
    validate = python("-m", "modnet", "validate", "fashion-mnist/m2mkd")
    return [
        compare("startup --help", ("modnet --help", python("-m", "modnet", "--help")), bare, repeats),
        compare("startup validate", ("modnet validate", validate), libraries, repeats),
    ]


SUBJECTS: dict[str, Callable[[int], list[Comparison]]] = {
    "startup": startup,
    "loader": loader,
    "step": step,
    "checkpoint": checkpoint,
    "modules": modules,
    "teacher-cache": teacher_cache,
    "moe": moe,
    "scaling": scaling,
}
