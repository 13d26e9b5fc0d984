"""Every command and Python example of the README runs, in the order of the page and in one folder.

The rule for commands:

- ``modnet`` with a recipe under ``smoke/``, a copied recipe or a run: exactly as written;
- ``modnet`` with a recipe on data that must be fetched, or that trains for minutes: with
  ``--dry-run`` added, which reads and checks the whole request and trains nothing;
- ``make TARGET``: the target is in the Makefile;
- ``pip install .[EXTRA]``: the extra is in pyproject.toml;
- any other program: it is installed with modnet.

A block whose first line is a comment with a file name is that file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
TRAINING = {"train", "incubate", "assemble", "distill", "route", "evaluate", "eval"}


def steps() -> Iterator[tuple[str, str]]:
    """Kind and text of every step: a ``file``, a ``python`` block, or a line of an ``sh`` block."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S):
        if re.match(r"# \S+\.(py|yaml)$", body, flags=re.M):
            yield "file", body
        elif language == "python":
            yield language, body
        elif language == "sh":
            for line in body.splitlines():
                if shlex.split(line, comments=True):
                    yield language, line.partition(" #")[0].strip()


def runnable(words: list[str]) -> list[str]:
    """A ``modnet`` command, made a dry run where it would fetch data or train for minutes."""
    verb, *rest = words[1:]
    first = next((word for word in rest if not word.startswith("-")), "")
    shipped = (ROOT / "recipes" / f"{first}.yaml").exists() and not first.startswith("smoke/")
    dry = verb in TRAINING and shipped and "--dry-run" not in rest
    return [*words, "--dry-run"] if dry else words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the reader of the page stands."""
    return tmp_path_factory.mktemp("reader")


def execute(words: list[str], folder: Path) -> None:
    """Run a command as a reader does; the test fails with what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MODNET_")}
    env |= {"PATH": f"{SCRIPTS}{os.pathsep}{env['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{shlex.join(words)} exited {done.returncode}:\n{done.stdout}"


@pytest.mark.parametrize(("kind", "text"), [pytest.param(*step, id=step[1].split("\n")[0]) for step in steps()])
def test_step(kind: str, text: str, folder: Path) -> None:
    if kind == "file":
        (folder / text.split("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        return
    if kind == "python":
        execute([sys.executable, "-c", text], folder)
        return
    words = shlex.split(text)
    if words[0] == "modnet":
        execute(runnable(words), folder)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(re.findall(r"\[(\w+)\]", text)) <= project["optional-dependencies"].keys()
    else:
        assert shutil.which(words[0], path=str(SCRIPTS)), f"{words[0]} is not installed with modnet"


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    commands = [line.split("#")[0].strip() for line in first_screen]
    assert "make demo" in commands
    assert "make test" in commands


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:modnet|tests|recipes|docs)/[\w/.]+)`", text)) - {"modnet/shipped"}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
