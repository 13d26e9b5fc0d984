"""The command line as a user meets it: exit codes, messages on stderr, and how fast it answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modnet.cli import validate
from modnet.cli.failures import show_tracebacks
from modnet.cli.main import main
from modnet.errors import Interrupted, RunFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_debug() -> None:
    show_tracebacks(False)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "modnet.cli.main", *words], capture_output=True, text=True, cwd=ROOT)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in [
        "train",
        "incubate",
        "assemble",
        "distill",
        "route",
        "evaluate",
        "ls",
        "cp",
        "show",
        "validate",
        "plan",
        "bench",
        "import",
        "export",
    ]:
        assert f"\n  {command} " in text


def test_a_bare_call_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modnet 0.")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "smoke/kd", "--smok"], "--smoke"),
        (["train"], "RECIPE"),
        (["train", "smoke/kd", "--threads", "0"], "--threads"),
        (["train", "smoke/kdd"], "did you mean 'smoke/kd'"),
        (["train", "smoke/kd", "stages.student.epoch=3"], "did you mean 'epochs'"),
        (["train", "smoke/kd", "--seeds", "4-0"], "runs backwards"),
        (["train", "smoke/kd", "--seeds", "a"], "write a range such as 0-4"),
        (["distill"], "modnet distill --teacher vit-b"),
        (["distill", "smoke/kd", "--teacher", "vit-s"], "models.teacher.name=vit-s"),
        (["distill", "--teacher", "vit-x"], "no model is called 'vit-x'"),
        (["eval", "smoke/kd", "--on", "digits-r"], "stages.NAME.on=[SUITE]"),
        (["route", "smoke/kd"], "has no stage with run: route"),
        (["route", "smoke/kd", "--of", "student"], "--of belongs to --analyse and --trade-offs"),
        (["route", "--analyse", "runs", "--smoke"], "--analyse trains nothing; leave out --smoke"),
        (["ls", "modles"], "did you mean 'models'"),
        (["ls", "models", "xyz*"], "no models match"),
        (["show", "nothing"], "there is no recipe 'nothing'"),
        (["validate", "seed=3"], "name a recipe"),
    ],
)
def test_wrong_requests_are_one_paragraph_and_exit_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    text = capsys.readouterr().err
    assert part in text
    assert text.startswith("error: ")
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (RunFailed("the disk is full"), 1, "error: the disk is full"),
        (Interrupted("saved at step 3"), 130, "saved at step 3"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero\nThis is a bug in modnet or a plug-in; --debug"),
    ],
)  # fmt: skip
def test_exit_codes(
    error: BaseException, code: int, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(validate, "load", fail)
    assert main(["validate", "smoke/kd"]) == code
    text = capsys.readouterr().err
    assert part in text
    assert "Traceback" not in text
    assert main(["validate", "smoke/kd", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "load", stop)
    assert main(["validate", "smoke/kd"]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


def test_a_message_is_wrapped_at_the_width_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    main(["train", "smoke/kd", "stages.student.epoch=3", "seed=x"])
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert len(lines) >= 4


def test_a_process_exits_with_the_code_and_without_a_traceback() -> None:
    done = run("validate", "smoke/kd", "stages.student.epoch=3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "on the command line: stages.student.epoch: 3: there is no such key" in done.stderr
    assert run("validate", "smoke/kd").returncode == 0


@pytest.mark.parametrize(
    "words", [["--help"], ["validate", "smoke/kd"], ["show", "smoke/kd"], ["ls"], ["ls", "models"]]
)
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import sys; from modnet.cli.main import main; main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'torchvision', 'sklearn', 'timm'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
