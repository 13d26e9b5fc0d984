"""Heads of a dense network as experts, and the dense network again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, describe, rebuild
from modnet.engine.optimizers import declared_matrices
from modnet.errors import RequestError
from modnet.evaluation.cost import cost
from modnet.layers.head_experts import HeadExperts
from modnet.randomness import Key
from modnet.recipe.routing import Split
from modnet.surgery.conversion import head_blocks
from modnet.surgery.experts import grown, mixtures, pruned
from modnet.surgery.rerouting import rerouted
from modnet.surgery.splitting import merged, split

IMAGES = Key.of(1).normal(torch.arange(5), 64).view(5, 1, 8, 8)


def to(**values: Any) -> Split:
    return Split.model_validate({"data": "d", "from": "f", "placement": "all", "part": "attention", **values})


def made(dense: Chain, **values: Any) -> Chain:
    return split(dense, to(**{"experts": 4, "top_k": 2, **values}), Key.of(3)).eval()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 3), data=st.data())
def test_all_heads_are_the_dense_network(
    tiny: Callable[..., Chain], heads: int, seed: int, data: st.DataObject
) -> None:
    experts = data.draw(st.sampled_from([n for n in (1, 2, 4, 8) if heads % n == 0]))
    dense = tiny(depths=(1, 1), heads=heads, seed=seed).eval()
    network = made(dense, experts=experts, top_k=experts)
    torch.testing.assert_close(network(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)
    back = merged(network)
    assert describe(back) == describe(dense)
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_a_split_of_mlps_and_of_heads_stand_together(tiny: Callable[..., Chain]) -> None:
    dense = tiny(heads=4).eval()
    mlps = split(dense, Split.model_validate({"data": "d", "from": "f", "experts": 8, "top_k": 8}), Key.of(0))
    both = made(mlps, top_k=4)
    torch.testing.assert_close(both(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)
    assert sorted(name for _, name in mixtures(both)) == ["attn", "attn", "attn", "moe"]
    torch.testing.assert_close(merged(both)(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)
    again = rebuild(describe(both)).eval()
    again.load_state_dict(both.state_dict())
    assert torch.equal(again(IMAGES), both(IMAGES))
    assert set(declared_matrices(both)) <= {name for name, _ in both.named_parameters()}


def test_heads_are_pruned_grown_and_chosen_otherwise(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1, 1), heads=4).eval()
    network = made(dense)
    fewer = pruned(network, {place: [0, 3] for place in mixtures(network)}, "drop").eval()
    for old, new in zip(head_blocks(network).values(), head_blocks(fewer).values(), strict=True):
        assert isinstance(old.attn, HeadExperts)
        assert isinstance(new.attn, HeadExperts)
        assert torch.equal(new.attn.value.weight, old.attn.value.weight[[0, 3]])
    assert fewer(IMAGES).isfinite().all()
    with pytest.raises(RequestError, match="pruned or added"):
        merged(fewer)
    more = next(iter(head_blocks(grown(network, 2, Key.of(0))).values()))
    assert more.arguments["attention_experts"] == 6
    torch.testing.assert_close(rerouted(network, top_k=4)(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)


def test_a_token_that_takes_fewer_heads_costs_less(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1, 1), heads=4)
    network = made(dense)
    assert dense.takes is not None
    whole, half = cost(dense, dense.takes), cost(network, dense.takes)
    width, count = 16, 5
    projections = 2 * 2 * width * width * count // 2  # half of the queries and outputs, of two blocks
    router = 2 * 4 * width * count
    assert half.macs == whole.macs - projections + router
    assert half.parameters == whole.parameters
    assert half.active == whole.active - 2 * (2 * width * width + width) // 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 3}, "4 heads of attention do not divide into 3 experts; give experts: 4"),
        ({"placement": (7,)}, "placement"),
    ],
)
def test_what_cannot_work_is_refused(tiny: Callable[..., Chain], values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(tiny(heads=4), **values)


def test_heads_are_split_once_and_a_weighted_sum_cannot_be_merged(tiny: Callable[..., Chain]) -> None:
    network = made(tiny(heads=4), router={"name": "renormalised", "scale": 2.0})
    with pytest.raises(RequestError, match="weighted by their router"):
        merged(network)
    with pytest.raises(RequestError, match="has heads that are experts already"):
        made(network)
    for limit in ("capacity", "capacity_eval"):
        with pytest.raises(ValueError, match="leave out the capacity"):
            to(router={"name": "softmax-top-k", limit: 1.0})
    with pytest.raises(ValueError, match="tokens choose heads"):
        to(router={"name": "expert-choice", "capacity": None})
