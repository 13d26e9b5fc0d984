"""Each command: what it hands on and what it prints."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import modnet
from modnet.cli.common import parse_seeds
from modnet.cli.distill import fill
from modnet.cli.ls import headline
from modnet.cli.main import app
from modnet.errors import RequestError
from modnet.recipe import Recipe, load_recipe, stage_keys

invoke = CliRunner().invoke


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple, dict[str, Any]]]:
    """Stand in for modnet.experiment, so that torch is not imported; gives the calls made to it."""
    made: list[tuple[str, tuple, dict[str, Any]]] = []
    stand_in = types.ModuleType("modnet.experiment")

    def note(name: str, result: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append((name, args, kwargs))
            return result

        return call

    rows = [{"stage": "teacher", "state": "to do", "epochs": 6}, {"stage": "verdict", "state": "done"}]
    stand_in.run = note("run", {})  # type: ignore[attr-defined]
    stand_in.evaluate_run = note("evaluate_run", {})  # type: ignore[attr-defined]
    stand_in.plan = note("plan", rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modnet.experiment", stand_in)
    monkeypatch.setattr(modnet, "experiment", stand_in, raising=False)
    return made


def handed(calls: list, *words: str) -> tuple[Recipe, dict[str, Any]]:
    done = invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ((name, (recipe,), options),) = calls
    assert name == "run"
    return recipe, options


@pytest.mark.parametrize(
    ("command", "verb"),
    [("train", None), ("incubate", "incubate"), ("assemble", "assemble"), ("distill", "distill"),
     ("evaluate", "evaluate"), ("eval", "evaluate")],
)  # fmt: skip
def test_verbs_hand_the_recipe_on(calls: list, command: str, verb: str | None) -> None:
    recipe, options = handed(calls, command, "smoke/m2mkd", "seed=3", "stages.student.epochs=4")
    assert (recipe.name, recipe.seed, recipe.stages["student"].epochs) == ("smoke-m2mkd", 3, 4)  # type: ignore[attr-defined]
    plain = {"dry_run": False, "seeds": None, "threads": None, "device": None}
    assert options == {"runs": Path("runs"), "verb": verb, **plain}


def test_options(calls: list) -> None:
    recipe, options = handed(
        calls, "train", "--smoke", "smoke/kd", "--dry-run", "--seeds", "0-2", "--runs", "/x", "--threads", "1"
    )
    assert recipe.smoke
    given = {"dry_run": True, "seeds": [0, 1, 2], "threads": 1, "device": None}
    assert options == {"runs": Path("/x"), "verb": None, **given}


def test_runs_may_come_from_the_environment(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODNET_RUNS", "/elsewhere")
    assert handed(calls, "train", "smoke/kd")[1]["runs"] == Path("/elsewhere")


def test_distill_without_a_recipe_fills_the_shipped_one(calls: list) -> None:
    names = ["--teacher", "vit-b", "--student", "vit-s", "--data", "cifar10"]
    recipe, options = handed(calls, "distill", "models.student.drop_path=0.1", *names)
    assert recipe.models["teacher"].width == 768  # type: ignore[attr-defined]
    assert (recipe.models["student"].width, recipe.models["student"].drop_path) == (384, 0.1)  # type: ignore[attr-defined]
    assert recipe.data["images"].name == "cifar10"
    assert [s.run for s in recipe.stages.values()] == ["train", "distill", "assemble", "evaluate"]
    assert options["verb"] is None, "it goes on to the table"


def test_a_timm_teacher_takes_the_place_of_the_whole_model() -> None:
    assert fill("models.teacher", "timm:vit_tiny") == "models.teacher={name: timm:vit_tiny}"
    assert fill("models.teacher", "vit-b") == "models.teacher.name=vit-b"


def test_evaluating_a_finished_run(calls: list, tmp_path: Path) -> None:
    done = invoke(app, ["eval", str(tmp_path), "--on", "digits-r,digits", "--on", "digits-c", "--of", "student"])
    assert done.exit_code == 0, done.output
    assert calls == [
        ("evaluate_run", (tmp_path,), {"on": ["digits-r", "digits", "digits-c"], "of": ["student"], "device": None})
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["seed=3"], "takes no overrides: seed=3"),
        (["--smoke"], "without --smoke"),
        (["--seeds", "0-2", "--dry-run"], "without --seeds or --dry-run"),
    ],
)
def test_a_finished_run_takes_nothing_that_changes_a_recipe(
    calls: list, tmp_path: Path, words: list[str], part: str
) -> None:
    with pytest.raises(RequestError, match=part):
        invoke(app, ["eval", str(tmp_path), *words], catch_exceptions=False)
    assert not calls


@pytest.mark.usefixtures("calls")
def test_a_finished_run_is_measured_with_as_many_threads_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    assert invoke(app, ["eval", str(tmp_path), "--threads", "3"], catch_exceptions=False).exit_code == 0
    assert asked == [3]


def test_plan_prints_the_rows_it_gets(calls: list) -> None:
    done = invoke(app, ["plan", "smoke/kd", "--smoke", "--runs", "/x"], catch_exceptions=False)
    assert "smoke: models.large.width: 32 -> 16" in done.output
    assert [line.split() for line in done.output.splitlines()[-3:]] == [
        ["stage", "state", "epochs"], ["teacher", "to", "do", "6"], ["verdict", "done"]
    ]  # fmt: skip
    assert calls[0][2] == {"runs": Path("/x")}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("7", [7]), ("0-2, 1,9", [0, 1, 2, 9]), (None, None)],
)
def test_seeds(text: str | None, seeds: list[int] | None) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0-4-5", "1;2", "3-1"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(RequestError, match="--seeds"):
        parse_seeds(text)


def test_ls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "smoke/m2mkd" in invoke(app, ["ls"]).output
    assert "fashion-mnist/demo" not in invoke(app, ["ls", "smoke/*"]).output
    others = "lists models, data, optimizers, schedules, augments, shifts or verbs"
    assert others in invoke(app, ["ls"]).output
    assert others not in invoke(app, ["ls", "smoke/*"]).output
    models = invoke(app, ["ls", "models", "vit-*"]).output
    assert "vit-b" in models
    assert "timm" not in models
    for kind, name in {"data": "digits", "optimizers": "muon", "schedules": "cosine", "augments": "cutmix",
                       "shifts": "renditions", "verbs": "incubate"}.items():  # fmt: skip
        assert name in invoke(app, ["ls", kind]).output


def test_a_headline_is_a_whole_sentence(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("# Incubation (Ni et al. 2022) in\n# two lines. And more.\n#\n#   modnet train r\nname: r\n")
    assert headline(file) == "Incubation (Ni et al. 2022) in two lines"
    file.write_text("name: r\n")
    assert headline(file) == ""


def test_cp_stamps_the_version_and_never_overwrites_unasked(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mine.yaml"
    assert invoke(app, ["cp", "smoke/m2mkd", str(target)]).exit_code == 0
    first, *rest = target.read_text().splitlines()
    assert first == f"# Copied from the recipe smoke/m2mkd of modnet {modnet.__version__}."
    assert any("# m2mKD on handwritten digits" in line for line in rest), "comments are kept"
    assert stage_keys(load_recipe(target), {}) == stage_keys(load_recipe("smoke/m2mkd"), {})
    target.write_text("mine")
    with pytest.raises(RequestError, match="--force overwrites it"):
        invoke(app, ["cp", "smoke/m2mkd", str(target)], catch_exceptions=False)
    assert target.read_text() == "mine"
    assert invoke(app, ["cp", "smoke/m2mkd", str(target), "--force"]).exit_code == 0
    assert invoke(app, ["cp", "smoke/kd", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "kd.yaml").exists()


def test_show_prints_a_recipe_that_loads(tmp_path: Path) -> None:
    done = invoke(app, ["show", "smoke/m2mkd", "seed=5", "--smoke"])
    (tmp_path / "again.yaml").write_text(done.output)
    again = load_recipe(tmp_path / "again.yaml")
    assert stage_keys(again, {}) == stage_keys(load_recipe("smoke/m2mkd", smoke=True, seed=5), {})
    raw = invoke(app, ["show", "smoke/m2mkd", "--raw"]).output
    assert raw.startswith("# m2mKD on handwritten digits")


def test_validate_tells_the_errors_of_every_recipe(tmp_path: Path) -> None:
    names = []
    for word in ("one", "two"):
        file = tmp_path / f"{word}.yaml"
        file.write_text(f"run: train\n{word}: 1\n")
        names.append(str(file))
    with pytest.raises(RequestError) as caught:
        invoke(app, ["validate", names[0], "smoke/kd", names[1]], catch_exceptions=False)
    assert "one.yaml:2:1: one: 1" in str(caught.value)
    assert "two.yaml:2:1: two: 1" in str(caught.value)


def test_deprecated_names_are_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from modnet.registry import OPTIMIZERS

    monkeypatch.setitem(OPTIMIZERS._deprecated, "adam-w", "adamw")
    done = invoke(app, ["validate", "smoke/kd", "defaults.optimizer=adam-w"])
    assert done.exit_code == 0
    assert done.stderr == "note: optimizer 'adam-w' is now called 'adamw'\n"


def test_data_lists_what_there_is_and_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    (tmp_path / "imagenet-r").mkdir()
    listed = invoke(app, ["data"], catch_exceptions=False).output
    assert f"data folder: {tmp_path}" in listed
    assert "imagenet-r, as unpacked" in listed
    for words, told in (
        (["prepare", "cubs", "--from", str(tmp_path)], "did you mean 'cub'"),
        (["prepare", "cub", "--from", str(tmp_path / "no")], "there is no file or folder"),
    ):
        with pytest.raises(RequestError, match=told):
            invoke(app, ["data", *words], catch_exceptions=False)
