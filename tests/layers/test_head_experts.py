"""Heads of attention as experts: what they equal, and batches at the edge of what can be routed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.layers.attention import Attention
from modnet.layers.head_experts import HeadExperts
from modnet.randomness import Key

SIZE = 3
ROUTERS = ("avg-k", "norm-k", "softmax-top-k", "renormalised", "perceptron", "cosine")
FEW = settings(max_examples=20, deadline=None)


def dense(heads: int, seed: int = 0, qkv_bias: bool = True) -> Attention:
    with Key.of(seed, "dense").forked():
        made = Attention(heads * SIZE, heads, qkv_bias)
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.4)
    return made


def routed(attention: Attention, experts: int, top_k: int, **router: Any) -> HeadExperts:
    width, biased = attention.proj.out_features, attention.qkv.bias is not None
    with Key.of(1, "routed").forked():
        made = HeadExperts(width, SIZE, attention.heads // experts, experts, top_k, {"name": "avg-k", **router}, biased)
    made.divide(attention)
    return made.eval()


def tokens(batch: int, count: int, width: int, seed: int = 0) -> Tensor:
    return Key.of(seed).normal(torch.arange(batch), count * width).view(batch, count, width)


def by_hand(layer: HeadExperts, x: Tensor) -> Tensor:
    """Every token alone: the weighted sum of what its heads give, each head by the formula of attention."""
    keys = layer.query.weight if layer.gate.by_keys else None
    out = torch.zeros_like(x)
    for i, image in enumerate(x):
        choice = layer.gate(image, None, keys)
        for t, token in enumerate(image):
            for weight, e in zip(choice.weights[t], choice.indices[t].tolist(), strict=True):
                q, k, v = (
                    (rows @ part.weight[e].T + part.bias[e]).unflatten(-1, (-1, SIZE))
                    for part, rows in ((layer.query, token), (layer.key, image), (layer.value, image))
                )
                scores = torch.einsum("hs,nhs->hn", q, k) / SIZE**0.5
                mixed = torch.einsum("hn,nhs->hs", scores.softmax(-1), v).flatten()
                out[i, t] += weight * (layer.out.weight[e] @ mixed)
            out[i, t] += layer.out_bias
    return out


@FEW
@given(
    experts=st.integers(1, 4),
    each=st.integers(1, 2),
    batch=st.integers(1, 3),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
def test_all_heads_are_the_dense_attention(
    experts: int, each: int, batch: int, count: int, seed: int, bias: bool
) -> None:
    attention = dense(experts * each, seed, bias)
    x = tokens(batch, count, experts * each * SIZE, seed)
    layer = routed(attention, experts, experts)
    torch.testing.assert_close(layer(x, Pass()), attention(x), atol=1e-5, rtol=1e-5)
    back = dense(experts * each, seed + 1, bias)
    layer.join(back)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), attention.parameters(), strict=True))


@FEW
@given(
    name=st.sampled_from(ROUTERS),
    experts=st.integers(2, 4),
    batch=st.integers(1, 2),
    count=st.integers(1, 3),
    data=st.data(),
)
def test_it_is_what_one_would_do_by_hand(name: str, experts: int, batch: int, count: int, data: st.DataObject) -> None:
    # Also fewer tokens than experts, and one image alone.
    top_k = data.draw(st.integers(1 if name != "renormalised" else 2, experts))
    layer, ctx = routed(dense(2 * experts), experts, top_k, name=name), Pass()
    x = tokens(batch, count, 2 * experts * SIZE)
    torch.testing.assert_close(layer(x, ctx), by_hand(layer, x), atol=1e-4, rtol=1e-4)
    assert ctx.stats["0.attention.load"].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ROUTERS)
def test_all_tokens_to_some_heads_and_none_to_the_others(name: str) -> None:
    layer, ctx = routed(dense(4), 4, 2, name=name), Pass()
    x = tokens(1, 1, 4 * SIZE).expand(3, 2, -1).contiguous()  # equal tokens choose equal heads
    out = layer(x, ctx)
    torch.testing.assert_close(out, by_hand(layer, x), atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    used = ctx.stats["0.attention.load"] > 0
    assert used.sum() == 2
    for stack in (layer.query.weight.grad, layer.out.weight.grad):
        assert stack is not None
        assert not stack[~used].any()  # zeros, not None, without a token
    assert layer.out.weight.grad is not None
    assert (layer.out.weight.grad.abs().amax((1, 2)) > 0).equal(used)


@pytest.mark.parametrize("name", ["avg-k", "norm-k", "softmax-top-k"])
def test_permuted_heads_change_nothing(name: str) -> None:
    layer, x = routed(dense(4), 4, 2, name=name), tokens(2, 4, 4 * SIZE)
    out, order = layer(x, Pass()), torch.tensor([3, 0, 2, 1])
    with torch.no_grad():
        for key, p in layer.named_parameters():
            if key != "out_bias":
                p.copy_(p[order].clone())
    torch.testing.assert_close(layer(x, Pass()), out, atol=1e-5, rtol=1e-5)


def test_by_norm_a_token_takes_the_heads_of_its_longest_queries() -> None:
    layer, x = routed(dense(4), 4, 2, name="norm-k"), tokens(1, 5, 4 * SIZE)
    queries = torch.stack([x[0] @ layer.query.weight[e].T for e in range(4)], 1)
    choice = layer.gate(x[0], None, layer.query.weight)
    torch.testing.assert_close(choice.logits, queries.square().sum(-1).sqrt())
    assert torch.equal(choice.weights, torch.ones(5, 2))
    assert not list(layer.gate.parameters())


def test_losses_and_wanted_choices_go_to_the_pass() -> None:
    layer, x = routed(dense(4), 4, 2, name="softmax-top-k", switch=0.5, noise=2.0).train(), tokens(2, 3, 4 * SIZE)
    ctx = Pass(Key.of(0), torch.arange(2), wanted=frozenset({0}))
    whole = layer(x, ctx)
    assert ctx.losses["0.attention.router"].item() > 0
    assert ctx.stats["0.attention.experts"].shape == (2, 3, 2)
    assert ctx.stats["0.attention.probs"].shape == (2, 3, 4)
    assert ctx.stats["0.attention.kept"].all()
    alone = layer(x[1:], Pass(Key.of(0), torch.arange(1, 2)))  # noise belongs to samples
    torch.testing.assert_close(whole[1:], alone)
    quiet = Pass()
    layer.eval()(x, quiet)
    assert not quiet.losses
    with pytest.raises(RequestError, match="more experts than there are"):
        routed(dense(2), 2, 3)
    with pytest.raises(RequestError, match="no gradient of the task reaches it"):
        routed(dense(2), 2, 1, name="renormalised")
