"""Plug-in files: registered before validation, part of keys, with errors told as the recipe's."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from modnet.recipe import stage_keys
from modnet.registry import MODELS
from tests.recipe.conftest import Read, Wrong

PLUGIN = '''
from modnet.registry import AUGMENTS, MODELS, plugin

@plugin(MODELS, "tower")
def tower(port, classes, *, width: int = 32, depths: tuple[int, ...] = (1, 1), gain: float | None = None):
    """A tower. Of blocks."""
    return ("built", port, classes, width, depths, gain)

@plugin(AUGMENTS, "noise")
def noise(images, *, sigma: float):
    return images
'''
TEXT = """\
plugins: [mine.py]
data: {d: {name: digits}}
models: {m: {name: tower, width: 8}}
stages: {a: {run: train, data: d, model: m, augment: [{name: noise, sigma: 1}]}}
"""


@pytest.fixture
def mine(tmp_path: Path, registries: None) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.usefixtures("mine")
def test_a_typed_function_becomes_a_model(recipe: Read) -> None:
    params = recipe(TEXT).models["m"]
    assert params.model_dump() == {"name": "tower", "width": 8, "depths": (1, 1), "gain": None}
    entry = MODELS.get("tower")
    assert entry.about == "A tower"
    assert entry.resolve()(params, "port", 10) == ("built", "port", 10, 8, (1, 1), None)


@pytest.mark.usefixtures("mine")
def test_its_parameters_are_checked_like_our_own(errors: Wrong) -> None:
    found = errors(TEXT.replace("width: 8", "widht: 8, depths: [1, x]").replace("sigma: 1", "sigma: big"))
    assert "r.yaml:3:27: models.m.widht: 8: there is no such key; did you mean 'width'?" in found
    assert "r.yaml:3:49: models.m.depths.1: 'x': wants a whole number" in found
    assert any("stages.a.augment.0.sigma: 'big': wants a number" in line for line in found)


@pytest.mark.usefixtures("mine")
def test_a_required_parameter_is_asked_for(errors: Wrong) -> None:
    (line,) = errors(TEXT.replace("{name: noise, sigma: 1}", "noise"))
    assert "`sigma:` is missing" in line


def test_its_source_is_part_of_the_keys(recipe: Read, mine: Path) -> None:
    before = stage_keys(recipe(TEXT), {})
    assert stage_keys(recipe(TEXT), {}) == before, "reading it twice registers nothing twice"
    mine.write_text(PLUGIN + "# changed\n")
    assert stage_keys(recipe(TEXT), {}) != before


def test_a_changed_file_is_read_anew(recipe: Read, mine: Path) -> None:
    recipe(TEXT)
    mine.write_text(PLUGIN.replace("width: int = 32", "width: int = 32, extra: int = 5"))
    assert recipe(TEXT).models["m"].extra == 5  # type: ignore[attr-defined]


@pytest.mark.usefixtures("registries")
def test_it_is_named_by_its_content_so_that_a_recipe_may_move(recipe: Read, mine: Path) -> None:
    first = stage_keys(recipe(TEXT), {})
    module = MODELS.get("tower").builder.partition(":")[0]
    assert module == f"modnet_plugin_{hashlib.sha256(mine.read_bytes()).hexdigest()[:12]}"
    held = sys.modules[module]
    (mine.parent / "new").mkdir()
    moved = mine.rename(mine.parent / "new" / "mine.py")
    second = recipe(TEXT, "plugins=[new/mine.py]")
    assert sys.modules[module] is held, "imported once"
    assert stage_keys(second, {}) == first
    moved.write_text(PLUGIN.replace("width: int = 32", "width: int = 32, extra: int = 5"))
    third = recipe(TEXT, "plugins=[new/mine.py]").models["m"]
    assert third.extra == 5  # type: ignore[attr-defined]
    assert sys.modules[module] is held, "networks built of the earlier version still find their leaves"


def test_going_back_to_an_earlier_version(recipe: Read, mine: Path) -> None:
    recipe(TEXT)
    mine.write_text(PLUGIN.replace("width: int = 32", "width: int = 32, extra: int = 5"))
    recipe(TEXT)
    mine.write_text(PLUGIN)
    assert "extra" not in recipe(TEXT).models["m"].model_dump()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "there is no file"),
        ("1 / 0", "importing it failed: ZeroDivisionError"),
        ("def f(:", "importing it failed: SyntaxError"),
        (PLUGIN.replace("width: int = 32", "width=32"), "argument 'width' of tower needs a type"),
        (PLUGIN.replace('"tower"', '"vit"'), "model 'vit' is already registered"),
    ],
)
def test_what_is_wrong_with_a_file(errors: Wrong, mine: Path, content: str | None, part: str) -> None:
    mine.write_text(content or "")
    if content is None:
        mine.unlink()
    found = errors(TEXT)
    assert any(line.startswith("r.yaml:1:11: plugins.0: 'mine.py'") and part in line for line in found)


@pytest.mark.usefixtures("mine")
def test_the_resolved_recipe_finds_it_from_anywhere(recipe: Read) -> None:
    first = recipe(TEXT)
    again = recipe(first.to_yaml())
    assert again.plugins == first.plugins
    assert stage_keys(again, {}) == stage_keys(first, {})
