"""Bringing a recipe up to date: what is done is skipped, what changed is done again, and no more."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import modnet
from modnet import experiment
from modnet.errors import RequestError, RunFailed
from modnet.experiment import Session, evaluate_run
from modnet.recipe import load_recipe

RECIPE = """
name: pair
data: {all: {name: digits, per_class: 20}}
models:
  wide: {name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4}
  thin: {name: vit, width: 8, heads: 2, depths: [1, 1], patch: 4}
defaults: {data: all, batch: 32}
stages:
  teacher: {run: train, model: wide, seed: 0}
  student: {run: distill, method: kd, student: thin, teacher: teacher}
  alone: {run: train, model: thin}
  verdict: {run: evaluate, of: [alone, student], on: [digits, digits-r], throughput: false}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(RECIPE)
    return path


def run(path: Path, *overrides: str, **options: object) -> tuple[str, dict[str, object]]:
    console = Console(file=io.StringIO(), width=120)
    loaded = load_recipe(path, overrides)
    summary = experiment.run(loaded, runs=path.parent / "runs", console=console, **options)  # type: ignore[arg-type]
    return console.file.getvalue(), summary  # type: ignore[attr-defined]


def trained(path: Path, *overrides: str, **options: object) -> list[str]:
    """The stages that a run trained or measured, told by what is new in the store."""
    store = path.parent / "runs" / "store"
    before = {p: p.stat().st_mtime_ns for p in store.glob("*/stage.json")}
    run(path, *overrides, **options)
    new = [p for p in store.glob("*/stage.json") if before.get(p) != p.stat().st_mtime_ns]
    return sorted(json.loads(p.read_text())["name"] for p in new)


def test_a_second_run_trains_nothing_and_a_change_no_more_than_it_must(recipe: Path) -> None:
    assert trained(recipe) == ["alone", "student", "teacher", "verdict"]
    assert trained(recipe) == []
    assert trained(recipe, "stages.student.tau=3") == ["student", "verdict"]
    assert trained(recipe, "stages.student.tau=3") == []
    assert trained(recipe, "models.wide.mlp_ratio=2") == ["student", "teacher", "verdict"]
    assert trained(recipe, "seed=1") == ["alone", "student", "verdict"]


def test_another_verb_needs_its_own_stages_only(recipe: Path) -> None:
    assert trained(recipe, verb="distill") == ["student", "teacher"]
    with pytest.raises(RequestError, match="no stage with run: incubate"):
        run(recipe, verb="incubate")


def test_a_dry_run_writes_nothing(recipe: Path) -> None:
    text, _ = run(recipe, dry_run=True)
    assert "to do" in text
    assert not (recipe.parent / "runs").exists()


def test_seeds_give_a_summary_with_paired_differences(recipe: Path) -> None:
    _, summary = run(recipe, seeds=[0, 1])
    path = recipe.parent / "runs" / "pair"
    on_disk = json.loads((path / "summary.json").read_text())
    assert summary.pop("folder") == str(path)
    assert on_disk == json.loads(json.dumps(summary))
    row = on_disk["rows"]["student"]["top1"]
    assert len(row["values"]) == 2
    assert row["half_width"] is not None
    assert set(on_disk["differences"]) == {"student - alone"}
    keys = [json.loads((path / f"seed-{n}" / "run.json").read_text())["keys"] for n in (0, 1)]
    assert keys[0]["teacher"] == keys[1]["teacher"]
    assert keys[0]["student"] != keys[1]["student"]


def test_fewer_seeds_do_not_replace_the_summary_of_more(recipe: Path) -> None:
    run(recipe, seeds=[0, 1])
    path = recipe.parent / "runs" / "pair" / "summary.json"
    several = path.read_text()
    run(recipe, seeds=[1])
    assert path.read_text() == several
    run(recipe, seeds=[1, 2])
    assert json.loads(path.read_text())["seeds"] == [1, 2]


def test_every_seed_computes_with_the_threads_that_were_asked_for(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def resumed(session: Session, stages: list[str]) -> dict[str, Any]:
        seen.append(session.threads)
        torch.set_num_threads(session.threads + 1)  # as a stage whose first start had another number
        return {}

    monkeypatch.setattr(experiment, "bring_up_to_date", resumed)
    before = torch.get_num_threads()
    try:
        run(recipe, seeds=[0, 1], threads=2)
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]


def test_a_run_may_be_named_from_within_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe)
    for inside, name in (("seed-0", "."), ("", "seed-0"), ("seed-0", "../seed-0")):
        monkeypatch.chdir(recipe.parent / "runs" / "pair" / inside)
        assert evaluate_run(Path(name), on=["digits"], of=["alone"])["rows"]


def test_networks_load_from_a_run_and_are_checked(recipe: Path) -> None:
    run(recipe)
    folder = recipe.parent / "runs" / "pair" / "seed-0"
    network = modnet.load(folder, "student")
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert not network.training
    with pytest.raises(RequestError, match="alone, student, teacher"):
        modnet.load(folder)
    weights = folder / "stages" / "alone" / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunFailed, match=r"network\.safetensors"):
        modnet.load(folder, "alone")


def test_a_finished_run_is_measured_on_more(recipe: Path) -> None:
    run(recipe, verb="distill")
    folder = recipe.parent / "runs" / "pair" / "seed-0"
    summary = experiment.evaluate_run(folder, ["digits-c"], of=["student"], console=Console(file=io.StringIO()))
    assert set(summary["suites"]["student"]["digits-c"]["top1"]) > {"mean", "fog/3"}
    with pytest.raises(RequestError, match="nowhere"):
        experiment.evaluate_run(folder, ["nowhere"], of=["student"], console=Console(file=io.StringIO()))
