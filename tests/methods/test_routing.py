"""`run: route`: a dense network becomes sparse, is trained on, stored, measured and read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from modnet.errors import RequestError
from modnet.layers.moe import MoEBlock
from modnet.recipe import RecipeError, load_recipe
from modnet.report.routing import analyse_run
from modnet.report.trade_offs import trade_offs
from tests.methods.conftest import Lab

RECIPE = """
name: routed
data: {all: {name: digits, per_class: 24}}
models:
  dense: {name: vit, width: 16, heads: 2, depths: [1, 1, 1, 1], patch: 2}
  sparse: {name: vmoe, width: 16, depths: [2, 2], patch: 2}
defaults: {data: all, batch: 48, optimizer: {name: muon, lr: 0.005}}
stages:
  base: {run: train, model: dense, epochs: 2, seed: 0}
  upcycled: {run: route, method: upcycle, from: base, experts: 4, router: {name: renormalised, switch: 0.01}}
  tuned: {run: route, method: upcycle, from: base, experts: 6, fragments: 2}
  split: {run: route, method: split, from: base, placement: last-2, experts: 8, top_k: 4}
  on: {run: train, from: split}
  verdict: {run: evaluate, of: [base, upcycled, split, on], on: [digits], throughput: false}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "routed.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("routed")
    (folder / "routed.yaml").write_text(RECIPE)
    lab = Lab(folder / "runs", folder / "routed.yaml")
    lab.run()
    return lab


@pytest.mark.parametrize("stage", ["upcycled", "tuned"])
def test_upcycling_starts_where_the_dense_network_ended(routed: Lab, stage: str) -> None:
    inputs = routed.run(only=stage)
    result = inputs.store.result(inputs.keys[stage])
    assert result["before_val_top1"] == result["dense_val_top1"]
    network = routed.chain(inputs, stage)
    assert [isinstance(leaf, MoEBlock) for leaf in network.leaves] == [False, False, True, False, True, False]
    assert len(network) == 4


def test_a_split_network_is_measured_and_trained_on(routed: Lab) -> None:
    inputs = routed.run()
    (base, upcycled, split, on) = inputs.store.result(inputs.keys["verdict"])["rows"]
    assert split["parameters"] < base["parameters"] + 8 * 2 * 16  # output biases of experts alone are added
    assert split["macs"] < base["macs"] < upcycled["macs"]
    assert "before" in split
    assert on["flops_student"] > split["flops_student"] > base["flops_student"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.split.experts=5", "64 hidden units of dense's MLPs do not divide into 5 equal parts"),
        ("stages.split.placement=contiguous-last-5", "asks for blocks that a network of 4 blocks does not have"),
        ("models.dense.name=vmoe", "experts take the place of a vit's MLPs"),
        ("stages.split.part=attention", "2 heads of dense do not divide into 8 experts"),
        ("stages.upcycled.top_k=1", "gives every token the weight 1"),
        ("stages.upcycled.method=upcylce", "did you mean 'upcycle'"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])


def test_a_run_is_analysed_and_measured_at_other_settings(routed: Lab) -> None:
    run = routed.folder / "routed" / "seed-0"
    quiet = Console(file=io.StringIO())
    numbers = analyse_run(run, of=["upcycled"], console=quiet)
    place = run / "routing" / "upcycled"
    assert json.loads((place / "routing.json").read_text()) == numbers["upcycled"]
    assert set(numbers["upcycled"]) == {"block 1", "block 3"}
    for name in ("load", "classes", "entropy", "together", "patches"):
        with Image.open(place / f"{name}.png") as image:
            assert min(image.size) > 200
    assert list((place / "tb").iterdir())
    points = trade_offs(run, of=["split"], console=quiet)["split"]
    by_k = {p.top_k: p for p in points if p.capacity is None}
    assert set(by_k) == {1, 2, 4, 8}
    assert by_k[1].macs < by_k[4].macs < by_k[8].macs
    limited = [p for p in points if p.order == "batch-priority"]
    assert [p.dropped for p in limited] == sorted(p.dropped for p in limited)
    assert limited[-1].macs < by_k[4].macs
    assert (run / "routing" / "split" / "trade-offs.png").is_file()
    with pytest.raises(
        RequestError, match="base of .* has experts in a ViT.s blocks to look at; those that have are: .*on, split"
    ):
        analyse_run(run, of=["base"], console=quiet)


def test_heads_of_attention_are_split_trained_and_looked_at(routed: Lab) -> None:
    heads = (
        "stages.heads={run: route, method: split, part: attention, from: split, placement: all, experts: 2, top_k: %d}"
    )
    inputs = routed.run(heads % 1, only="heads")
    network = routed.chain(inputs, "heads")
    trained, given = inputs.store.result(inputs.keys["heads"]), routed.chain(inputs, "heads", "before")
    assert trained["dense_val_top1"] == inputs.store.result(inputs.keys["split"])["metrics"]["network"]["top1"]
    assert any(not torch.equal(t, given.state_dict()[name]) for name, t in network.state_dict().items())
    run, quiet = routed.folder / "routed" / "seed-0", Console(file=io.StringIO())
    numbers = analyse_run(run, of=["heads"], console=quiet)["heads"]
    assert list(numbers) == ["block 0 heads", "block 1 heads", "block 1", "block 2 heads", "block 3 heads", "block 3"]
    assert all(len(found["load"]) == (2 if "heads" in name else 8) for name, found in numbers.items())
    whole = routed.run(heads % 2, only="heads")
    result = whole.store.result(whole.keys["heads"])
    assert result["before_val_top1"] == result["dense_val_top1"]
