"""Modules of a circuit are distilled among the modules of ViTs, then assembled and fine-tuned as a whole circuit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from modnet import experiment
from modnet.engine.artifacts import load_chain
from modnet.errors import RequestError
from modnet.layers.nac.latents import Latents
from modnet.recipe import load_recipe
from modnet.store import Store

RECIPE = """
name: circuits
data: {all: {name: digits, per_class: 12}}
models:
  vit: {name: vit, width: 16, heads: 2, depths: [1, 1, 1], patch: 2}
  circuit:
    {name: nac, width: 8, signatures: 4, inputs: 3, mediators: 4, outputs: 2, iterations: 1, heads: 2, head_width: 4,
     stem_depths: [1, 1], stem_patch: 2, positions: 4, graph: {steps: 5}, drop_path: 0.1}
defaults: {data: all, batch: 48, optimizer: {name: adamw, lr: 1e-3}}
stages:
  meta: {run: train, model: vit}
  transfer: {run: distill, student: circuit, teacher: meta, meta: meta, stitch: linear}
  whole: {run: assemble, from: transfer, epochs: 1}
"""


def run(folder: Path, *overrides: str) -> dict[str, Path]:
    path = folder / "circuits.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, overrides)
    session = experiment.open_session(recipe, folder / "runs", Console(file=io.StringIO()))
    experiment.bring_up_to_date(session, list(recipe.stages))
    return {name: Store(folder / "runs" / "store").folder(session.keys[name]) for name in recipe.stages}


def test_a_circuit_is_taught_in_parts_assembled_and_fine_tuned(tmp_path: Path) -> None:
    folders = run(tmp_path)
    students = [load_chain(folders["transfer"], f"module{i}") for i in range(3)]
    before, after = load_chain(folders["whole"], "before"), load_chain(folders["whole"], "network")
    weight = "attention.query.weight"
    for i, (place, own) in enumerate((("1", "1"), ("1", "2"), ("1", "3"))):
        assert torch.equal(students[i].state_dict()[f"{place}.{weight}"], before.state_dict()[f"{own}.{weight}"])
    assert isinstance(after.shared_part, Latents)
    changed = {n for n, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[n])}
    assert {"shared.mediator.codes", "shared.input.signatures", f"2.{weight}", "2.kernel.bandwidth"} <= changed
    with pytest.raises(RequestError, match="stitches: drop"):
        run(tmp_path, "stages.whole.stitches=keep")


def test_modules_go_into_another_circuit_for_other_images(tmp_path: Path) -> None:
    into = "{name: nac, width: 8, signatures: 4, inputs: 3, mediators: 6, outputs: 2, iterations: 1, heads: 2, "
    into += "head_width: 4, stem_depths: [1, 1], stem_patch: 2, positions: 4, blocks: 1.0, drop_path: 0.1, "
    into += "graph: {name: planted-partition, groups: 2, steps: 5}}"
    few = "{name: class-subset, of: digits, classes: [0, 1, 2, 3, 4], per_class: 12}"
    folders = run(tmp_path, f"models.other={into}", f"data.few={few}", "stages.whole.model=other",
                  "stages.whole.data=few")  # fmt: skip
    students = [load_chain(folders["transfer"], f"module{i}") for i in range(3)]
    before = load_chain(folders["whole"], "before").state_dict()
    assert torch.equal(before["2.attention.query.weight"], students[1].state_dict()["1.attention.query.weight"])
    assert before["shared.mediator.codes"].shape == (6, 8)
    assert before["4.pooling.to_logits.weight"].shape == (5, 8), "a head for other classes starts afresh"
    losses = (folders["whole"] / "metrics.jsonl").read_text()
    assert "nan" not in losses.lower()
    with pytest.raises(RequestError, match="their own family"):
        run(tmp_path, "stages.whole.model=vit")
    with pytest.raises(RequestError, match="with `model:` only drop is possible"):
        run(tmp_path, f"models.other={into}", "stages.whole.model=other", "stages.whole.stitches=keep")
