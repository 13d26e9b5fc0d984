"""Plans: what they count is what a run records, without data or weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from modnet import experiment
from modnet.data import load
from modnet.data.planned import planned
from modnet.errors import RequestError
from modnet.evaluation.hardware import REACHED, described, measured
from modnet.planning import plan
from modnet.recipe import load_recipe, shipped_recipes, stage_keys
from modnet.recipe.sources import Source
from modnet.recipe.stages import TrainingStage
from modnet.registry import DATA
from modnet.report.tables import plan_table, si, size
from modnet.store import Store

RECIPE = """
name: planned
data: {digits: {name: digits, per_class: 20}}
models:
  small: {name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4}
  large: {name: vit, width: 16, heads: 2, depths: [2, 1], patch: 4}
defaults: {data: digits, batch: 32, optimizer: adamw}
stages:
  meta:     {run: train, model: small, epochs: 1}
  modules:  {run: incubate, model: large, meta: meta, epochs: 1}
  network:  {run: assemble, from: modules, epochs: 1, ema: 0.9, optimizer: sgd}
  transfer: {run: distill, student: small, teacher: network, meta: meta, epochs: 1, accumulate: 4}
  student:  {run: assemble, from: transfer, epochs: 1}
  baseline: {run: train, model: large, epochs: 3}
  probe:    {run: train, from: baseline, tune: head, epochs: 1}
  verdict:  {run: evaluate, of: [network, student, baseline], on: [digits], throughput: false}
"""


@pytest.fixture
def recipe(tmp_path: Path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.yaml")


def test_a_plan_counts_what_a_run_records(recipe, tmp_path: Path) -> None:
    before = {row["stage"]: row for row in plan(recipe, runs=tmp_path).stages}
    assert {row["state"] for row in before.values()} == {"to do"}
    summary = experiment.run(recipe, runs=tmp_path, console=Console(file=io.StringIO()), device="cpu")
    after = plan(recipe, runs=tmp_path)
    assert {row["state"] for row in after.stages} == {"done"}
    keys = stage_keys(recipe, experiment.fingerprints(recipe))
    for name in ("meta", "modules", "network", "transfer", "student", "baseline", "probe"):
        recorded = Store(tmp_path / "store").result(keys[name])
        assert before[name]["flops"] == pytest.approx(sum(recorded["flops"].values())), name
    for row in after.networks:
        measured_row = summary["rows"][row["network"]]
        assert row["student"] == pytest.approx(measured_row["flops_student"]["mean"])
        assert row["with passes"] == pytest.approx(measured_row["flops_passes"]["mean"])
        assert row["with all"] == pytest.approx(measured_row["flops_all"]["mean"])
    modular = {row["network"]: row for row in after.networks}
    share = modular["network"]["with all"] / modular["baseline"]["with all"]
    assert modular["network"]["share"] == f"{share:.2f} of baseline"
    assert "share" not in modular["baseline"]


def test_parameters_and_memory_by_hand(recipe, tmp_path: Path) -> None:
    rows = {row["stage"]: row for row in plan(recipe, runs=tmp_path).stages}
    count = {name: sum(rows[name]["learns"]) for name in rows if "learns" in rows[name]}
    assert count["network"] == count["baseline"] == sum(rows["modules"]["learns"])
    assert rows["modules"]["frozen"] == count["meta"]
    assert rows["meta"]["optimizer"] == 4 * 2 * count["meta"], "two moments a number"
    assert rows["network"]["optimizer"] == 4 * 2 * count["network"], "momentum, and the averaged weights"
    assert rows["meta"]["weights"] == 4 * 2 * count["meta"], "weights and gradients"
    assert rows["probe"]["learns"][0] + rows["probe"]["frozen"] == count["baseline"]
    assert rows["transfer"]["frozen"] == count["meta"] + count["network"]
    whole = plan(load_recipe(recipe.path, ["stages.meta.accumulate=4"]), runs=tmp_path).stages[0]["activations"]
    assert whole < rows["meta"]["activations"] < 4.5 * whole, "a quarter of the batch keeps about a quarter"


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("vit-b", "86.6 M", "17.6 G"), ("vit-l", "304 M", "61.6 G"), ("vit-h", "632 M", "167.4 G")],
)
def test_published_sizes(name: str, parameters: str, macs: str, tmp_path: Path) -> None:
    text = f"name: p\ndata: {{d: imagenet}}\nmodels: {{m: {name}}}\nstages: {{s: {{run: train, model: m, data: d}}}}\n"
    (tmp_path / "p.yaml").write_text(text)
    found = plan(load_recipe(tmp_path / "p.yaml"), runs=tmp_path)
    (row,) = found.models
    assert (si(row["parameters"]), size(row["with norms"])) == (parameters, macs)
    assert 0.99 * row["with norms"] < row["MACs"] < row["with norms"]
    assert [row["state"] for row in found.stages] == ["no data"]
    assert "data prepare imagenet" in found.notes[0]


QUICK = (
    "fashion-mnist/m2mkd-",
    "fashion-mnist/emoe",
    "fashion-mnist/head",
    "fashion-mnist/lora",
    "fashion-mnist/confid",
    "text",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n.startswith(QUICK) else pytest.mark.slow) for n in shipped_recipes()]
)
def test_every_shipped_recipe_can_be_planned(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    rows = {row["stage"]: row for row in plan(recipe, runs=tmp_path).stages}
    training = [name for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)]
    assert all(rows[name]["weights"] >= 0 and rows[name]["activations"] >= 0 for name in training)
    assert any(sum(rows[name]["learns"]) > 0 for name in training) or not training


def test_a_planned_data_set_is_as_large_as_the_one_that_is_read() -> None:
    for values in ({"name": "digits"}, {"name": "digits", "per_class": 7}, {"name": "digits", "fraction": 0.5},
                   {"name": "class-subset", "of": "digits", "classes": [1, 2, 3], "per_class": 5}):  # fmt: skip
        params = DATA.read(values)
        assert isinstance(params, Source)
        read, known = load(params), planned(params)
        assert (known.port, len(known.classes)) == (read.port, len(read.classes))
        assert len(known.train) == pytest.approx(len(read.train), rel=0.01)
        assert known.train.images.is_meta
    assert len(planned(DATA.read("imagenet")).train) == 1_276_167
    params = DATA.read({"name": "cub", "synthetic": True, "size": 16})
    assert len(planned(params).train) == len(load(params).train)


def test_hardware() -> None:
    assert described("20T").seconds(40e12, "fp32") == described("20T").seconds(40e12, "bf16") == 2
    one, eight = described("a100"), described("A100x8")
    assert one.seconds(1e15, "bf16") == pytest.approx(8 * eight.seconds(1e15, "bf16"))
    assert one.bf16 == REACHED * 312e12
    for wrong, told in (("a10", "did you mean a100"), ("0T", "name a device"), ("fast", "known devices: v100")):
        with pytest.raises(RequestError, match=told):
            described(wrong)


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modnet.evaluation.hardware.SECONDS", 0.0)
    state = torch.random.get_rng_state()
    found = measured(60, torch.device("cpu"))
    assert found.fp32 > 0
    assert found.bf16 > 0
    assert "64 wide" in found.said
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_table_names_only_what_there_is() -> None:
    rows: list[dict[str, Any]] = [{"stage": "a", "learns": [10, 20], "seconds": 90_000.0}, {"stage": "verdict"}]
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "30 in 2" in text
    assert "25.0 h" in text
    assert "frozen" not in text
