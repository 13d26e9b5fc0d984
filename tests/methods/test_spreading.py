"""Modules spread over processes are the modules of one process, bit for bit, and a stage goes on in any number."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from modnet import experiment
from tests.ranks import in_processes


def _run(recipe: Path, runs: Path, overrides: tuple[str, ...], verb: str) -> str:
    from modnet.recipe import load_recipe

    console = Console(file=io.StringIO(), width=200)
    experiment.run(load_recipe(recipe, overrides), runs=runs, verb=verb, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_modules_over_two_processes_equal_those_of_one(taught: Any, tmp_path: Path) -> None:
    alone = taught.run(only="modules")
    apart = type(taught)(tmp_path / "runs", taught.recipe_file)
    apart.run(only="base")  # a whole network's batches would be shared, whose last bits are others
    told = in_processes(2, _run, taught.recipe_file, apart.folder, (), "incubate")
    assert "2 processes, gloo (on the CPU)" in told[0]
    assert "dealt to 2 processes by cost" in told[0]
    folder = apart.folder / "store" / alone.keys["modules"]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert not list(folder.glob("metrics-*"))
    both = apart.run(only="modules")  # everything is done: only read
    for i in range(3):
        state = taught.chain(alone, "modules", f"module{i}").state_dict()
        other = apart.chain(both, "modules", f"module{i}").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    results = [inputs.store.result(inputs.keys["modules"]) for inputs in (alone, both)]
    assert results[0]["hybrid_val_top1"] == results[1]["hybrid_val_top1"]
    assert results[0]["images"] == results[1]["images"]


def test_one_shared_step_with_mixing_equals_that_of_one_process(taught: Any, tmp_path: Path) -> None:
    step: tuple[str, ...] = ("stages.base.optimizer={name: sgd, lr: 0.1}", "stages.base.batch=500")
    step = (*step, "stages.base.select=last", "stages.base.augment=[crop,mixup-cutmix]")
    alone, apart = (type(taught)(tmp_path / name, taught.recipe_file) for name in ("alone", "apart"))
    one = alone.run(*step, only="base")
    in_processes(2, _bring, taught.recipe_file, apart.folder, step, "base")
    two = apart.run(*step, only="base")
    assert one.store.result(one.keys["base"])["images"] == two.store.result(two.keys["base"])["images"]
    other = apart.chain(two, "base").state_dict()
    for name, tensor in alone.chain(one, "base").state_dict().items():
        assert torch.allclose(tensor, other[name], atol=1e-5), name


MOE = ("models.meta.name=vmoe", "models.meta.experts=4", "models.meta.router=renormalised")


@pytest.mark.parametrize(
    ("stage", "parallel", "more"),
    [
        ("base", "experts: all", MOE),
        ("base", "fsdp: all, experts: 2", MOE),
        ("base", "fsdp: 2", ("stages.base.tune=head",)),
        ("hinton", "fsdp: 2", ()),
        ("teacher", "fsdp: 2", ("stages.teacher.epochs=1",)),
    ],
    ids=["experts", "both", "head", "kd", "assemble"],
)
def test_a_network_divided_over_two_processes_is_stored_as_that_of_one(
    taught: Any, tmp_path: Path, stage: str, parallel: str, more: tuple[str, ...]
) -> None:
    settings = ("optimizer={name: sgd, lr: 0.1}", "batch=500", "select=last")
    step = (*more, *(f"stages.{stage}.{text}" for text in settings))
    alone, apart = (type(taught)(tmp_path / name, taught.recipe_file) for name in ("alone", "apart"))
    if not more or stage == "teacher":  # what stages before it left
        alone = apart = taught
    one = alone.run(*step, only=stage)
    kept = {name: tensor.clone() for name, tensor in alone.chain(one, stage).state_dict().items()}
    scores = one.store.result(one.keys[stage])["metrics"]["network"]
    shutil.rmtree(one.folder(stage))
    in_processes(2, _bring, taught.recipe_file, apart.folder, (*step, f"stages.{stage}.parallel={{{parallel}}}"), stage)
    two = apart.run(*step, only=stage)  # the same key: everything is done
    assert two.store.result(two.keys[stage])["metrics"]["network"]["nll"] == pytest.approx(scores["nll"], abs=1e-4)
    other = apart.chain(two, stage).state_dict()
    assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in kept.items())


def _bring(recipe: Path, runs: Path, overrides: tuple[str, ...], stage: str) -> None:
    from modnet.engine.ranks import join
    from modnet.recipe import load_recipe

    world = join(torch.device("cpu"))
    session = experiment.open_session(load_recipe(recipe, overrides), runs, Console(quiet=True), "cpu", world)
    experiment.bring_up_to_date(session, [stage])
