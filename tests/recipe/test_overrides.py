"""Overrides from the command line."""

from __future__ import annotations

import pytest

from modnet.errors import RequestError
from tests.recipe.conftest import Read, Wrong


def test_values_are_yaml(recipe: Read, full: str) -> None:
    read = recipe(full, "stages.meta.optimizer.lr=1e-3", "models.vit_s.depths=[1, 1, 1, 1]", "seed=7")
    assert read.stages["meta"].optimizer.lr == 0.001  # type: ignore[attr-defined]
    assert read.seed == 7


def test_a_bare_name_grows_into_a_mapping(recipe: Read, full: str) -> None:
    read = recipe(full, "stages.meta.augment.0.pad=4", "stages.meta.optimizer=adamw", "stages.meta.optimizer.lr=0.1")
    assert read.stages["meta"].optimizer.lr == 0.1  # type: ignore[attr-defined]
    assert read.stages["teacher"].optimizer.name == "muon"  # type: ignore[attr-defined]


def test_lists_are_reached_by_number(recipe: Read, full: str) -> None:
    read = recipe(full, "defaults.augment.0.pad=4", "defaults.augment.1.p=0.5", "stages.verdict.on.1=small-c")
    assert read.stages["meta"].augment[0].pad == 4  # type: ignore[attr-defined]
    assert read.stages["verdict"].on == ("fashion-mnist", "small-c")  # type: ignore[attr-defined]


def test_new_stages_and_sections_can_be_written(recipe: Read, full: str) -> None:
    read = recipe(full, "stages.extra={run: train, from: meta}", "stages.extra.epochs=3")
    assert read.stages["extra"].epochs == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=3", ""])
def test_what_is_no_override(recipe: Read, full: str, text: str) -> None:
    with pytest.raises(RequestError, match="is no override"):
        recipe(full, text)


@pytest.mark.parametrize("text", ["seed=[1", "seed={a: 1, a: 2}", "seed=!!int 3"])
def test_overrides_are_as_strict_as_the_file(recipe: Read, full: str, text: str) -> None:
    with pytest.raises(RequestError, match="on the command line"):
        recipe(full, text)


def test_misplaced_overrides(errors: Wrong, full: str) -> None:
    found = errors(full, "defaults.augment.5=flip", "seed.x=3")
    assert "on the command line: defaults.augment.5: is a place in a list of 2: count from 0" in found
    assert any("is no mapping, so seed.x cannot be set in it" in line for line in found)


def test_the_last_override_wins_and_hides_an_error_of_the_file(recipe: Read, full: str) -> None:
    assert recipe(full.replace("seed: 0\ndata", "seed: x\ndata"), "seed=1", "seed=2").seed == 2
