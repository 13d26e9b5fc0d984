"""The resolved recipe is a recipe again, with equal keys."""

from __future__ import annotations

import pytest

from modnet.recipe import load_recipe, shipped_recipes, stage_keys
from modnet.recipe.writing import resolved
from tests.recipe.conftest import Read


@pytest.mark.parametrize("smoke", [False, True])
def test_the_resolved_text_loads_to_equal_parts_and_keys(recipe: Read, smoke: bool) -> None:
    first = recipe(smoke=smoke)
    again = recipe(first.to_yaml())
    assert (again.name, again.seed, again.data, again.models) == (first.name, first.seed, first.data, first.models)
    assert list(again.stages.items()) == list(first.stages.items())
    assert stage_keys(again, {}) == stage_keys(first, {})
    assert again.to_yaml() == first.to_yaml()


def test_every_shipped_recipe_survives_being_written(recipe: Read) -> None:
    for name in shipped_recipes():
        first = load_recipe(name)
        assert stage_keys(recipe(first.to_yaml()), {}) == stage_keys(first, {}), name


def test_texts_that_look_like_numbers_stay_texts(recipe: Read, full: str) -> None:
    text = full.replace("seed: 0\ndata", "seed: 0\ndata") + "  own: {run: train, model: vit_s, data: folder}\n"
    read = recipe(text, "data.folder={name: image-folder, path: '1e-3', size: 28, channels: 1}", "name='12'")
    again = recipe(read.to_yaml())
    assert again.data["folder"].path == "1e-3"  # type: ignore[attr-defined]
    assert again.name == "12"


def test_every_default_is_written_out(recipe: Read) -> None:
    written = resolved(recipe())
    assert written["models"]["thin"]["mlp_ratio"] == 4.0
    assert written["stages"]["student"]["from"] == "transfer"
    assert written["stages"]["meta"]["optimizer"]["others"]["lr"] == 3e-3
    assert "defaults" not in written
    assert "seed" not in written["stages"]["student"], "an unpinned seed stays unpinned"


def test_a_manifest_holds_what_a_stage_names(recipe: Read) -> None:
    manifest = recipe().manifest("transfer")
    assert manifest["inputs"] == ["teacher", "meta"]
    assert set(manifest["models"]) == {"thin"}
    assert set(manifest["data"]) == {"whole"}
    assert (manifest["verb"], manifest["seed"]) == ("distill", 0)
