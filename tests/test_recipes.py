"""Every shipped recipe runs from its first stage to its table, at its smoke size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modnet import experiment
from modnet.recipe import load_recipe, shipped_recipes
from modnet.recipe.stages import Evaluate

HEAVY = ("imagenet/", "tiny-imagenet/nac-m2mkd", "few-shot/cub", "few-shot/tiny", "few-shot/cifar")


def slow(name: str) -> Any:
    """A recipe whose smoke run takes longer than about ten seconds."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith(HEAVY) else name


@pytest.mark.parametrize("name", [slow(name) for name in sorted(shipped_recipes())])
def test_a_shipped_recipe_runs_at_smoke_size(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, smoke=True)
    assert recipe.reductions
    summary = experiment.run(recipe, runs=tmp_path, console=Console(file=io.StringIO()))
    evaluated = {of for stage in recipe.stages.values() if isinstance(stage, Evaluate) for of in stage.of}
    assert set(summary["rows"]) == evaluated
    assert all(0 <= row["top1"]["mean"] <= 100 for row in summary["rows"].values())
    assert {path.name for path in (tmp_path / recipe.name / "seed-0" / "stages").iterdir()} == set(recipe.stages)
