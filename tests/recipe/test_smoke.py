"""The smoke size: smaller and shorter, never another experiment."""

from __future__ import annotations

import pytest

from modnet.recipe import inputs_of, load_recipe, shipped_recipes
from modnet.recipe.checks import Role
from modnet.recipe.smoke import common_factor
from modnet.recipe.stages import TrainingStage
from modnet.registry import MODELS
from tests.recipe.conftest import Read, Wrong


def test_every_reduction_is_told(recipe: Read) -> None:
    told = recipe(smoke=True).reductions
    assert "models.vit_l.width: 64 -> 16" in told
    assert "models.vit_l.depths: [2, 2, 2, 2] -> [1, 1, 1, 1]" in told
    assert "models.thin.width: 48 -> 12" in told
    assert "data.small.per_class: 300 -> 24" in told
    assert "stages.student.epochs: 25 -> 1" in told
    assert "stages.meta.batch: 128 -> 32" in told
    assert "stages.verdict.batch: 512 -> 64" in told
    assert "stages.verdict.limit: null -> 64" in told


def test_sizes_and_steps_change_and_nothing_else(recipe: Read) -> None:
    big, small = recipe(), recipe(smoke=True)
    assert list(big.stages) == list(small.stages)
    changed = {line.split(":")[0].rsplit(".", 1)[1] for line in small.reductions}
    assert changed == {"per_class", "width", "heads", "depths", "epochs", "batch", "limit"}
    for name, stage in big.stages.items():
        assert type(small.stages[name]) is type(stage)
        assert inputs_of(small.stages[name], small) == inputs_of(stage, big)


def test_a_recipe_may_ask_for_more_images_and_epochs_in_proportion(recipe: Read, full: str) -> None:
    small = recipe(full + "smoke: {images: 4, epochs: 5}\n", "data.tiny={name: digits, per_class: 50}", smoke=True)
    epochs = {name: getattr(stage, "epochs", None) for name, stage in small.stages.items()}
    assert epochs == {
        "meta": 1, "modules": 1, "teacher": 1, "transfer": 1, "student": 5, "imitate": 1, "hinton": 1, "baseline": 5,
        "verdict": None,
    }  # fmt: skip
    assert {name: source.per_class for name, source in small.data.items()} == {"whole": 96, "small": 96, "tiny": 50}
    assert "stages.student.epochs: 25 -> 5" in small.reductions
    assert "data.whole.per_class: null -> 96" in small.reductions
    assert recipe(full + "smoke: {epochs: 99}\n", smoke=True).stages["student"].epochs == 25  # type: ignore[attr-defined]


def test_a_smoke_size_changes_nothing_in_the_recipe_itself(recipe: Read, full: str) -> None:
    assert recipe(full + "smoke: {images: 4, epochs: 5}\n").stages == recipe().stages


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("smoke: {epoch: 3}", "r.yaml:26:9: smoke.epoch: 3: there is no such key; did you mean 'epochs'?"),
        ("smoke: {images: 0}", "r.yaml:26:17: smoke.images: 0: must be more than 0"),
        ("smoke: tiny", "r.yaml:26:8: smoke: 'tiny': wants a mapping, such as {images: 4, epochs: 6}"),
    ],
)
def test_a_wrong_smoke_size(errors: Wrong, full: str, text: str, line: str) -> None:
    assert errors(full + text) == [line]


def test_a_stage_that_does_not_train_still_does_not(recipe: Read, full: str) -> None:
    stage = recipe(full, "stages.teacher.epochs=0", smoke=True).stages["teacher"]
    assert isinstance(stage, TrainingStage)
    assert stage.epochs == 0


def test_a_limit_that_is_smaller_stays(recipe: Read, full: str) -> None:
    assert recipe(full, "stages.verdict.limit=10", smoke=True).stages["verdict"].limit == 10  # type: ignore[attr-defined]


def test_warm_up_counted_in_steps_is_shortened(recipe: Read, full: str) -> None:
    told = recipe(full, "stages.meta.schedule.warmup=500", smoke=True).reductions
    assert "stages.meta.schedule.warmup: 500 -> '10%'" in told


def test_one_factor_for_all_widths() -> None:
    def models(*widths: int) -> dict:
        return {str(w): MODELS.read({"name": "vit", "width": w, "heads": 1}) for w in widths}

    assert common_factor(models(64, 48)) == 4
    assert common_factor(models(768, 192)) == 16
    assert common_factor(models(64, 50)) == 1, "50 / 4 is no whole even number"
    assert common_factor(models(16)) == 1
    assert common_factor({}) == 1


def test_a_smoke_run_downloads_no_weights(recipe: Read, full: str) -> None:
    text = ["models.big={name: timm:vit_tiny_patch16_224, pretrained: true}", "stages.hinton.teacher=big"]
    assert "models.big.pretrained: true -> false" in recipe(full, *text, smoke=True).reductions


def test_the_smoke_size_of_every_shipped_recipe_is_a_valid_recipe(recipe: Read) -> None:
    for name in shipped_recipes():
        small = load_recipe(name, smoke=True)
        again = recipe(small.to_yaml())
        assert again.stages == small.stages
        for model in small.models.values():
            assert Role("", "", model).modules


def test_a_run_at_smoke_size_has_a_name_of_its_own(recipe: Read) -> None:
    assert recipe(smoke=True).name == "full-smoke"
