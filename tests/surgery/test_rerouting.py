"""Other routing of the same experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modnet.chain import Chain, Pass
from modnet.errors import RequestError
from modnet.randomness import Key
from modnet.recipe.routing import Split, Upcycle
from modnet.surgery.conversion import expert_blocks
from modnet.surgery.rerouting import rerouted
from modnet.surgery.splitting import split
from modnet.surgery.upcycling import upcycled

IMAGES = Key.of(1).normal(torch.arange(5), 64).view(5, 1, 8, 8)


def test_a_split_network_with_all_experts_is_the_dense_one_again(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1, 1)).eval()
    with torch.no_grad():
        dense.leaves[1].mlp.fc2.bias.add_(1)  # type: ignore[union-attr, operator]
    stage = Split.model_validate({"data": "d", "from": "f", "placement": "all", "experts": 8, "top_k": 2})
    network = split(dense, stage, Key.of(0)).eval()
    before = network(IMAGES)
    assert not torch.allclose(before, dense(IMAGES), atol=1e-3)
    torch.testing.assert_close(rerouted(network, top_k=8)(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)
    assert torch.equal(network(IMAGES), before)


def test_capacity_and_order_can_be_set_and_lifted(tiny: Callable[..., Chain]) -> None:
    stage = Upcycle.model_validate({"data": "d", "from": "f", "placement": "all", "reinit": 0.5})
    network = upcycled(tiny(depths=(1,)), stage, Key.of(0)).eval()
    ctx = Pass()
    tight = rerouted(network, capacity=0.25, order="batch-priority")
    tight(IMAGES, ctx)
    assert ctx.stats["1.dropped"].item() > 0.3
    assert expert_blocks(tight)[1].arguments["router"]["order"] == "batch-priority"
    assert torch.equal(rerouted(tight, capacity=None)(IMAGES), network(IMAGES))
    assert torch.equal(rerouted(tight)(IMAGES), tight(IMAGES))
    assert rerouted(network, top_k=1)(IMAGES).isfinite().all()
    with pytest.raises(RequestError, match="more experts than there are"):
        rerouted(network, top_k=9)
