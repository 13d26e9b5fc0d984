"""A head that reads the class token alone: the block before it computes no other token to its end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.chain import Chain, Pass, Port
from modnet.evaluation.cost import cost
from modnet.layers.block import Block
from modnet.layers.head import Head
from modnet.layers.moe import MoEBlock
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT

IMAGE = Port.of("image", channels=1, size=8)


def network(pool: str, drop_path: float = 0.0) -> Chain:
    params = {"width": 16, "depths": (1, 1), "patch": 4, "pool": pool, "drop_path": drop_path}
    with Key.of(3).forked():
        return vit(ViT.model_validate(params), IMAGE, 5)


def images(count: int = 3) -> Tensor:
    return torch.linspace(-2, 2, count * 64).sin().view(count, 1, 8, 8)


def in_full(chain: Chain, x: Tensor, ctx: Pass) -> Tensor:
    for ctx.leaf, leaf in enumerate(chain.leaves):
        x = leaf(x, ctx)
    return x


@settings(max_examples=10, deadline=None)
@given(pool=st.sampled_from(["token", "mean"]), rate=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99))
def test_logits_and_gradients_are_those_of_all_tokens(pool: str, rate: float, seed: int) -> None:
    chain = network(pool, rate).double()
    x, key = images().double().requires_grad_(), Key.of(seed)
    found = []
    for run in (chain, lambda x, ctx: in_full(chain, x, ctx)):
        logits = run(x, Pass(key, torch.arange(len(x))))
        wanted = [x, *chain.parameters()]
        found.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for own, full in zip(*found, strict=True):
        torch.testing.assert_close(own, full, rtol=1e-9, atol=1e-12)


def given_by(chain: Chain, ctx: Pass) -> list[tuple[int, ...]]:
    """The shapes of what each leaf gives in a pass."""
    shapes: list[tuple[int, ...]] = []
    hooks = [leaf.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape))) for leaf in chain.leaves]
    chain(images(), ctx)
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(("pool", "tokens"), [("token", [5, 5, 1]), ("mean", [4, 4, 4])])
def test_only_what_is_read_is_computed(pool: str, tokens: list[int]) -> None:
    assert given_by(network(pool), Pass()) == [*((3, count, 16) for count in tokens), (3, 5)]


def test_activations_that_are_asked_for_are_whole() -> None:
    chain, ctx = network("token"), Pass(wanted=frozenset({2}))
    logits = chain(images(), ctx)
    assert ctx.taps[2].shape == (3, 5, 16)
    torch.testing.assert_close(logits, chain(images()))


def test_experts_see_all_tokens() -> None:
    block = MoEBlock(16, 2, 8, 2, 1, {"name": "softmax-top-k"})
    assert Chain([block, Head(16, 5)])._needed == {}
    assert Chain([Block(16, 2), Head(16, 5)])._needed == {0: 1}


def test_a_frozen_twin_and_a_part_are_narrowed_as_well() -> None:
    chain = network("token")
    assert chain.frozen()._needed == chain._needed == {2: 1}
    assert chain[1:]._needed == {0: 1}
    assert chain[:1]._needed == {}


def test_cost_is_that_of_all_tokens() -> None:
    assert cost(network("token"), IMAGE).macs > 2 * 5 * 12 * 16 * 16
