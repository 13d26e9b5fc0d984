"""Recipes of one stage, with ``run:`` at the top."""

from __future__ import annotations

from modnet.recipe.stages import Train
from tests.recipe.conftest import Read, Wrong

TEXT = """\
run: train
data: {name: digits, per_class: 20}
model: {name: vit, width: 32, patch: 2}
epochs: 3
seed: 4
"""


def test_models_and_data_in_place(recipe: Read) -> None:
    read = recipe(TEXT)
    stage = read.stages["train"]
    assert isinstance(stage, Train)
    assert (stage.model, stage.data, stage.epochs, stage.seed, read.seed) == ("model", "data", 3, None, 4)
    assert read.models["model"].width == 32  # type: ignore[attr-defined]
    assert read.data["data"].per_class == 20
    assert read.name == "r"


def test_a_source_by_name_and_a_stage_named_after_the_recipe(recipe: Read) -> None:
    read = recipe("name: mine\nrun: train\ndata: digits\nmodels: {m: {name: vit, patch: 2}}\nmodel: m\n")
    assert list(read.stages) == ["mine"]
    assert read.data["data"].name == "digits"


def test_errors_keep_their_positions(errors: Wrong) -> None:
    found = errors("run: train\ndata: {name: digit}\nmodel: {name: vit, widht: 3}\nepoch: 3\n")
    source = "r.yaml:2:14: data.name: 'digit': no data source is called 'digit'; did you mean 'digits'?"
    assert source in found
    assert "r.yaml:3:20: model.widht: 3: there is no such key; did you mean 'width' or 'weights'?" in found
    assert any(line.startswith("r.yaml:4:1: epoch: 3: there is no such key") for line in found)


def test_run_and_stages_exclude_each_other(errors: Wrong) -> None:
    found = errors("run: train\nstages: {a: {run: train}}\n")
    message = "r.yaml:1:1: run: 'train': a recipe has `run:` at the top or `stages:`, not both"
    assert message in found
