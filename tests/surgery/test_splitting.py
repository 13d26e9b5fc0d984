"""Splitting an MLP by its keys, and putting it together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.layers.block import Block
from modnet.randomness import Key
from modnet.recipe.routing import Split
from modnet.surgery.conversion import expert_blocks
from modnet.surgery.splitting import balanced_clusters, inertia, merged, split

IMAGES = Key.of(1).normal(torch.arange(5), 64).view(5, 1, 8, 8)


def made(dense: Chain, **values: Any) -> Chain:
    to = Split.model_validate({"data": "data", "from": "dense", "placement": "all", **values})
    return split(dense, to, Key.of(3))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(experts=st.sampled_from([1, 2, 4, 8, 16]), seed=st.integers(0, 3))
def test_all_experts_are_the_dense_network(tiny: Callable[..., Chain], experts: int, seed: int) -> None:
    dense = tiny(depths=(1, 1), seed=seed).eval()
    with torch.no_grad():
        for leaf in dense.leaves:
            if isinstance(leaf, Block):
                leaf.mlp.fc2.bias.normal_(generator=Key.of(seed).generator())
    network = made(dense, experts=experts, top_k=experts).eval()
    torch.testing.assert_close(network(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged(network)(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)


def test_merging_restores_the_weights_up_to_their_order(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1,))
    back = merged(made(dense, experts=8, top_k=2)).leaves[1]
    theirs = dense.leaves[1]
    assert isinstance(back, Block)
    assert isinstance(theirs, Block)
    assert back.arguments == theirs.arguments
    ours = {tuple(row) for row in torch.cat([back.mlp.fc1.weight, back.mlp.fc2.weight.T], 1).tolist()}
    assert ours == {tuple(row) for row in torch.cat([theirs.mlp.fc1.weight, theirs.mlp.fc2.weight.T], 1).tolist()}
    assert torch.equal(back.mlp.fc2.bias, theirs.mlp.fc2.bias)


def test_the_router_follows_the_keys_and_learns_nothing(tiny: Callable[..., Chain]) -> None:
    block = expert_blocks(made(tiny(depths=(1,)), experts=8, top_k=2))[1]
    assert not list(block.moe.gate.parameters())
    x = Key.of(2).normal(torch.arange(7), 16)
    keys = block.moe.experts.fc1.weight
    expected = torch.stack([(x @ keys[e].T).mean(-1) for e in range(8)], -1)
    choice = block.moe.gate(x, None, keys)
    torch.testing.assert_close(choice.logits, expected)
    assert not choice.logits.requires_grad
    assert torch.equal(choice.weights, torch.ones(7, 2))


def test_a_learned_router_cannot_be_merged(tiny: Callable[..., Chain]) -> None:
    network = made(tiny(depths=(1,)), experts=4, top_k=2, router={"name": "cosine", "hidden": 8})
    assert network(IMAGES).isfinite().all()
    with pytest.raises(RequestError, match="weighted by their router"):
        merged(network)


@settings(max_examples=10, deadline=None)
@given(clusters=st.integers(1, 6), each=st.integers(1, 5), seed=st.integers(0, 99))
def test_clusters_are_of_equal_size_and_no_exchange_helps(clusters: int, each: int, seed: int) -> None:
    keys = Key.of(seed).normal(torch.arange(clusters * each), 3)
    labels = balanced_clusters(keys, clusters, Key.of(seed))
    assert labels.bincount().tolist() == [each] * clusters
    points = torch.nn.functional.normalize(keys.double(), dim=1).numpy()
    best = inertia(points, labels.numpy())
    for i in range(len(keys)):
        for j in range(i):
            other = labels.numpy().copy()
            other[[i, j]] = other[[j, i]]
            assert inertia(points, other) >= best - 1e-9


def test_clear_clusters_are_found_whatever_the_length_of_keys() -> None:
    directions = np.eye(4).repeat(5, 0)
    keys = torch.from_numpy(directions) * (1 + torch.arange(20))[:, None] + 0.01
    labels = balanced_clusters(keys, 4, Key.of(0)).view(4, 5)
    assert (labels == labels[:, :1]).all()
    with pytest.raises(RequestError, match="20 hidden units do not divide into 3"):
        balanced_clusters(keys, 3, Key.of(0))
