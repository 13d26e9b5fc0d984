"""A divided network: every process holds its part alone, and afterwards the network is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modnet.chain import Chain, describe, parameter_count
from modnet.engine.checkpoint import Checkpoints
from modnet.engine.divided import local
from modnet.engine.ranks import join
from modnet.engine.sharding import shard
from modnet.recipe.stages import Parallel
from modnet.recipe.training import Muon
from tests.engine.toy import weights
from tests.engine.toy_experts import STEADY, expert_chain, expert_job, run, same, shared
from tests.ranks import in_processes


def _divided(parallel: dict[str, Any]) -> tuple[int, int, bool]:
    """Numbers held while it is divided, numbers that are still whole, and whether all is restored."""
    team = join(torch.device("cpu")).team
    job = expert_job(parallel=Parallel(**parallel))
    chain = job.tracks[0].chain
    params, structure = dict(chain.named_parameters()), describe(chain)
    values = {name: p.detach().clone() for name, p in params.items()}
    classes = [type(part) for part in chain.modules()]
    sharding = shard(job, team, torch.device("cpu"))
    held = sum(local(p).numel() for p in chain.parameters())
    whole = sum(p.numel() for p in params.values())
    sharding.restore()
    now = dict(chain.named_parameters())
    same = all(now[name] is p and torch.equal(p, values[name]) for name, p in params.items())
    clean = [type(part) for part in chain.modules()] == classes and not any(
        part._forward_pre_hooks or part._forward_hooks or part._state_dict_pre_hooks for part in chain.modules()
    )
    x = torch.ones(2, 1, 8, 8)
    alone = torch.equal(chain.cloned().eval()(x), expert_chain().eval()(x))
    return held, whole, same and clean and alone and describe(chain) == structure and type(chain) is Chain


@pytest.mark.parametrize("parallel", [{"experts": 2}, {"fsdp": 2}, {"fsdp": 2, "experts": 2}])
def test_a_divided_network_is_held_in_parts_and_restored(parallel: dict[str, Any]) -> None:
    chain = expert_chain()
    everything = parameter_count(chain)
    experts = sum(p.numel() for name, p in chain.named_parameters() if ".experts." in name)
    found = in_processes(2, _divided, parallel)
    assert all(restored for _, _, restored in found)
    shared = everything - experts if parallel == {"experts": 2} else 0  # what both processes hold
    assert sum(held for held, _, _ in found) == everything + shared
    assert [whole for _, whole, _ in found] == [shared, shared]


@pytest.mark.usefixtures("exact_muon")
@pytest.mark.parametrize("parallel", [{"experts": 2}, {"fsdp": 2}], ids=["experts", "fsdp"])
@pytest.mark.parametrize("optimizer", [STEADY, Muon(others=STEADY)], ids=["adamw", "muon"])
def test_checkpoints_are_whole_and_go_on_in_any_number_of_processes(
    optimizer: Any, parallel: dict[str, int], tmp_path: Path
) -> None:
    begun: dict[str, Any] = {"optimizer": optimizer, "ema": 0.9, "select": "best"}
    goes_on = {**begun, "epochs": 2}
    job, _ = run(tmp_path / "alone", **goes_on)
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, **begun)
    in_processes(2, shared, two, parallel, begun)
    stored = [Checkpoints(folder, "toy").load() for folder in (one, two)]
    for part in ("weights", "optimizer"):
        left, right = (getattr(checkpoint, part) for checkpoint in stored)
        assert {name: t.shape for name, t in left.items()} == {name: t.shape for name, t in right.items()}
        assert all(torch.allclose(t, right[name], atol=1e-3) for name, t in left.items())
    again, _ = run(two, **goes_on)  # what two processes saved, one reads
    spread = in_processes(2, shared, one, parallel, goes_on)  # and the other way
    trained = {name: tensor.numpy() for name, tensor in weights(again).items()}
    for found in (trained, spread[0][0], spread[1][0]):
        assert same(found, job, 1e-3)
