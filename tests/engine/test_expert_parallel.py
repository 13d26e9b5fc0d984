"""Experts that are dealt to processes: the weights of one process, and checkpoints that any number of them reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modnet.engine.ranks import Team
from modnet.engine.sharding import Degrees, shard
from modnet.errors import RequestError
from modnet.recipe.stages import Parallel
from modnet.recipe.training import SGD, Muon
from modnet.surgery.freezing import only_head
from tests.engine.toy_experts import PLAIN, STEADY, expert_job, run, same, shared
from tests.ranks import in_processes

pytestmark = pytest.mark.usefixtures("exact_muon")
TWO: dict[str, Any] = {"experts": 2}
ONE_STEP: dict[str, Any] = {"optimizer": SGD(lr=0.1)}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": SGD(lr=0.1)},
    "micro": {"optimizer": SGD(lr=0.1), "accumulate": 2, "model": PLAIN},
    "clip": {"optimizer": SGD(lr=0.5), "clip": 0.05},
    "muon": {"optimizer": Muon(weight_decay=0.1, others=STEADY), "ema": 0.9},
    "attention": {"optimizer": SGD(lr=0.1), "model": None},
    "keys": {"optimizer": SGD(lr=0.1), "model": {"router": {"name": "avg-k"}}},
}


@pytest.mark.parametrize("case", CASES)
def test_experts_of_two_processes_learn_like_those_of_one(case: str, tmp_path: Path) -> None:
    job, outcome = run(tmp_path / "alone", **CASES[case])
    left, right = in_processes(2, shared, tmp_path / "both", TWO, CASES[case])
    assert same(left[0], job, 1e-5)
    assert same(right[0], job, 1e-5)
    assert left[1]["network"]["nll"] == pytest.approx(outcome.metrics["network"]["nll"], abs=1e-4)


def test_four_processes_hold_two_copies_of_every_expert(tmp_path: Path) -> None:
    job, _ = run(tmp_path / "alone", **ONE_STEP)
    for found, _ in in_processes(4, shared, tmp_path / "four", TWO, ONE_STEP):
        assert same(found, job, 1e-5)


def test_degrees_follow_the_number_of_processes() -> None:
    assert Degrees.of(Parallel(experts="all", fsdp=2), 4) == Degrees(fsdp=2, experts=4)
    assert Degrees.of(Parallel(experts=2, data=4), 1) == Degrees(1, 1)
    assert Degrees.of(None, 4) == Degrees(1, 1)
    with pytest.raises(RequestError, match="6 processes do not divide into groups of 4"):
        Degrees.of(Parallel(experts=4), 6)
    with pytest.raises(RequestError, match="2 .data. times 2 .fsdp. is not the number of processes, 8"):
        Degrees.of(Parallel(fsdp=2, data=2), 8)


@pytest.mark.parametrize(
    ("processes", "arguments", "told"),
    [
        (3, {}, "4 experts cannot be dealt evenly to 3"),
        (2, {"compile": True}, "cannot be compiled"),
        (5, {"accumulate": 3}, "12 images in 3 parts does not give each of 5 processes as many"),
    ],
)
def test_what_does_not_divide_is_refused(processes: int, arguments: dict[str, Any], told: str) -> None:
    job = expert_job(parallel=Parallel(experts="all"), **arguments)
    with pytest.raises(RequestError, match=told):
        shard(job, Team(0, processes), torch.device("cpu"))


def test_a_network_without_experts_that_learn_is_refused() -> None:
    job = expert_job(parallel=Parallel(experts=2))
    job.tracks[0].chain = only_head(job.tracks[0].chain)
    with pytest.raises(RequestError, match="no experts that learn"):
        shard(job, Team(0, 2), torch.device("cpu"))
