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
from modnet.recipe.training import SGD, AdamW, Muon
from tests.engine.toy import weights
from tests.engine.toy_experts import expert_job, run, same, shared
from tests.ranks import in_processes

TWO: dict[str, Any] = {"fsdp": 2}
STEADY = AdamW(lr=0.01, eps=0.01)  # where a gradient is zero, rounding does not decide
PLAIN = {"router": "renormalised"}  # balance is not that of the whole batch where it is divided into micro-batches
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": (TWO, {"optimizer": SGD(lr=0.1)}),
    "micro": (TWO, {"optimizer": SGD(lr=0.1), "accumulate": 2, "ema": 0.9, "model": PLAIN}),
    "clip": (TWO, {"optimizer": SGD(lr=0.5), "clip": 0.05}),
    "muon": (TWO, {"optimizer": Muon(weight_decay=0.1, others=STEADY)}),
    "plain-muon": (TWO, {"optimizer": Muon(nesterov=False, others=STEADY)}),
    "experts": ({"fsdp": 2, "experts": 2}, {"optimizer": SGD(lr=0.5), "clip": 0.05}),
    "experts-muon": ({"fsdp": 2, "experts": 2}, {"optimizer": Muon(others=STEADY)}),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon in float32: in bfloat16 the last bits of a gradient would show."""
    monkeypatch.setattr("modnet.engine.choices.fastest_dtype", lambda device: (torch.float32, "a test"))


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


@pytest.mark.parametrize("optimizer", [STEADY, Muon(others=STEADY)], ids=["adamw", "muon"])
def test_checkpoints_go_on_in_any_number_of_processes(optimizer: Any, tmp_path: Path) -> None:
    begun: dict[str, Any] = {"optimizer": optimizer, "ema": 0.9, "select": "best"}
    goes_on = {**begun, "epochs": 2}
    job, _ = run(tmp_path / "alone", **goes_on)
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, **begun)
    in_processes(2, shared, two, TWO, begun)
    again, _ = run(two, **goes_on)  # what two processes saved, one reads
    (spread, _), _ = in_processes(2, shared, one, TWO, goes_on)  # and the other way
    assert same({name: tensor.numpy() for name, tensor in weights(again).items()}, job, 1e-3)
    assert same(spread, job, 1e-3)


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
