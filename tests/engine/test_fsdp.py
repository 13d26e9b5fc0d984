"""Networks whose parameters are sharded over processes: the weights of one process, and checkpoints in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modnet.chain import Chain
from modnet.engine.ranks import Team
from modnet.engine.sharding import shard
from modnet.errors import RequestError
from modnet.recipe.stages import Parallel
from modnet.recipe.training import SGD, Muon
from tests.engine.toy_experts import PLAIN, STEADY, expert_job, run, same, shared
from tests.ranks import in_processes

pytestmark = pytest.mark.usefixtures("exact_muon")
TWO: dict[str, Any] = {"fsdp": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": (TWO, {"optimizer": SGD(lr=0.1)}),
    "micro": (TWO, {"optimizer": SGD(lr=0.1), "accumulate": 2, "ema": 0.9, "model": PLAIN}),
    "clip": (TWO, {"optimizer": SGD(lr=0.5), "clip": 0.05}),
    "muon": (TWO, {"optimizer": Muon(weight_decay=0.1, others=STEADY)}),
    "plain-muon": (TWO, {"optimizer": Muon(nesterov=False, others=STEADY)}),
    "experts": ({"fsdp": 2, "experts": 2}, {"optimizer": SGD(lr=0.5), "clip": 0.05}),
    "experts-muon": ({"fsdp": 2, "experts": 2}, {"optimizer": Muon(others=STEADY)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_network_learns_like_a_whole_one(case: str, tmp_path: Path) -> None:
    parallel, settings = CASES[case]
    job, outcome = run(tmp_path / "alone", **settings)
    for found, metrics in in_processes(2, shared, tmp_path / "both", parallel, settings):
        assert same(found, job, 1e-5)
        assert metrics["network"]["nll"] == pytest.approx(outcome.metrics["network"]["nll"], abs=1e-4)


def test_copies_of_a_sharded_network_share_batches(tmp_path: Path) -> None:
    settings = {"optimizer": SGD(lr=0.1)}
    job, _ = run(tmp_path / "alone", **settings)
    assert all(same(found, job, 1e-5) for found, _ in in_processes(4, shared, tmp_path / "four", TWO, settings))


def test_what_cannot_be_sharded_is_refused() -> None:
    job = expert_job(parallel=Parallel(fsdp=2))
    leaves, scale = job.tracks[0].chain.leaves, nn.ParameterList([torch.zeros(())])
    for chain, told in (
        (Chain([*leaves[:2], leaves[1], *leaves[2:]]), "stands in several places"),
        (Chain([nn.BatchNorm1d(3)]), "running statistics"),
        (Chain([scale]), "is one number"),
        (Chain(leaves, shared=nn.Linear(1, 1)), "all its modules share"),
    ):
        job.tracks[0].chain = chain
        with pytest.raises(RequestError, match=told):
            shard(job, Team(0, 2), torch.device("cpu"))
