"""Shipped recipes: all valid, found by name, and missing ones answered with near names."""

from __future__ import annotations

from pathlib import Path

import pytest

from modnet.errors import RequestError
from modnet.recipe import find_recipe, load_recipe, shipped_recipes
from modnet.recipe.stages import Evaluate

SMOKE = {"smoke/e2e", "smoke/kd", "smoke/incubation", "smoke/m2mkd", "smoke/m2m-features", "smoke/aligned-meta"}
FASHION = {f"fashion-mnist/{name.split('/')[1]}" for name in SMOKE} | {"fashion-mnist/demo"}


def test_what_is_shipped() -> None:
    assert shipped_recipes().keys() >= SMOKE | FASHION | {"distill"}


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_is_valid_and_measures_something(name: str) -> None:
    recipe = load_recipe(name)
    assert any(isinstance(stage, Evaluate) for stage in recipe.stages.values())
    assert not recipe.notes, "no deprecated names"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_tells_its_command_and_its_result(name: str) -> None:
    text = find_recipe(name).read_text()
    assert text.startswith("# ")
    assert f"modnet train {name}" in text or f"modnet {name} " in text
    assert "# Measured:" in text
    assert "(to be filled)" not in text


def test_names_are_unique() -> None:
    names = [load_recipe(name).name for name in shipped_recipes()]
    assert len(names) == len(set(names)), "two recipes of one name would share run folders"


def test_the_demo_compares_four_methods_with_a_shared_teacher() -> None:
    stages = load_recipe("fashion-mnist/demo").stages
    verdict = next(stage for stage in stages.values() if isinstance(stage, Evaluate))
    assert verdict.of == ("e2e", "kd", "m2mkd", "features")
    assert verdict.on == ("fashion-mnist", "fashion-mnist-r")
    teachers = {stage.teacher for stage in stages.values() if hasattr(stage, "teacher")}
    assert teachers == {"teacher"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fashion-mnist/m2kd", "did you mean 'fashion-mnist/m2mkd'"),
        ("demo", "did you mean 'fashion-mnist/demo'"),
        ("m2mkd", "'fashion-mnist/m2mkd' or 'smoke/m2mkd'"),
        ("zzz", "`modnet ls` lists the recipes"),
    ],
)
def test_a_missing_recipe(name: str, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_recipe(name)
    assert part in str(caught.value)


def test_finding(tmp_path: Path) -> None:
    assert find_recipe("smoke/kd") == find_recipe("smoke/kd.yaml")
    (tmp_path / "recipe.yaml").write_text("x: 1")
    assert find_recipe(tmp_path) == tmp_path / "recipe.yaml", "the folder of a run"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="neither a recipe nor a run"):
        find_recipe(tmp_path / "empty")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RequestError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "r.yaml")
