"""Mixtures of experts: what they equal, what they report, and which routers could not learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import modnet.recipe.routers  # noqa: F401 - registers the names
from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.layers import balance
from modnet.layers.moe import MoE, capacity_of
from modnet.randomness import Key
from modnet.registry import ROUTERS


def moe(experts: int = 4, top_k: int = 2, **router: Any) -> MoE:
    with Key.of(0, "moe").forked():
        return MoE(6, 10, experts, top_k, {"name": "top-k-softmax", **router})


def tokens(batch: int = 3, count: int = 5) -> Tensor:
    return Key.of(1).normal(torch.arange(batch), count * 6).view(batch, count, 6)


def equal_experts(layer: MoE) -> MoE:
    with torch.no_grad():
        for p in layer.experts.parameters():
            p.copy_(p[:1].expand_as(p))
    return layer


@pytest.mark.parametrize("name", ["top-k-softmax", "renormalised", "noisy-top-k"])
def test_equal_experts_under_weights_that_add_up_to_one_are_a_dense_layer(name: str) -> None:
    layer, x = equal_experts(moe(name=name)), tokens()
    fc1, fc2 = layer.experts.fc1, layer.experts.fc2
    dense = F.linear(F.gelu(F.linear(x, fc1.weight[0], fc1.bias[0])), fc2.weight[0], fc2.bias[0])
    torch.testing.assert_close(layer(x, Pass()), dense, atol=1e-6, rtol=1e-5)


def test_renormalised_softmax_is_softmax_of_the_chosen() -> None:
    one, other = moe(name="renormalised", bias=True), moe(name="top-k-softmax")
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(tokens(), Pass()), other(tokens(), Pass()))


def test_places_for_all_are_dropless_and_no_places_give_nothing() -> None:
    free, tight, x = moe(), moe(capacity=4.0), tokens()
    tight.load_state_dict(free.state_dict())
    assert torch.equal(free(x, Pass()), tight(x, Pass()))
    ctx = Pass()
    few = moe(capacity=0.5)
    few(x, ctx)
    counts = (ctx.stats["0.load"] * 30).round()
    places = capacity_of(30, 4, 0.5)
    assert ctx.stats["0.dropped"].item() * 30 == pytest.approx((counts - places).clamp(min=0).sum().item(), abs=1e-4)
    closed = moe(capacity=0.01, capacity_rule="tutel")
    assert closed.capacity(15) == 0
    assert not closed(x, Pass()).any()


def test_permuted_tokens_give_permuted_outputs() -> None:
    layer, x = moe(), tokens()
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(x[:, order], Pass()), layer(x, Pass())[:, order])


def test_noise_belongs_to_samples_and_to_training() -> None:
    layer, x = moe(name="softmax-top-k", noise=4.0), tokens()
    key, ids = Key.of(5), torch.tensor([7, 8, 9])
    whole = layer.train()(x, Pass(key, ids))
    assert torch.equal(layer(x, Pass(key, ids)), whole)
    assert not torch.equal(layer(x, Pass(Key.of(6), ids)), whole)
    torch.testing.assert_close(layer(x[1:], Pass(key, ids[1:])), whole[1:])
    quiet = layer.eval()(x, Pass(key, ids))
    assert torch.equal(quiet, layer(x, Pass()))
    assert not torch.equal(quiet, whole)


def test_losses_are_told_while_training_only() -> None:
    layer, x = moe(name="softmax-top-k", switch=0.5, mutual_information=0.1), tokens()
    ctx = Pass(Key.of(0))
    layer.train()(x, ctx)
    choice = layer.gate(x.flatten(0, 1))
    expected = 0.5 * balance.switch(choice.probs, choice.indices) + 0.1 * balance.mutual_information(choice.probs)
    torch.testing.assert_close(ctx.losses["0.router"], expected)
    ctx.losses["0.router"].backward()
    assert layer.gate.gate.weight.grad is not None
    quiet = Pass()
    layer.eval()(x, quiet)
    assert not quiet.losses
    assert quiet.stats["0.load"].sum().item() == pytest.approx(1)


def test_experts_choose_their_share() -> None:
    layer, x = moe(name="expert-choice", capacity=1.0), tokens(4, 4)
    assert layer.capacity(16) == 4
    out = layer(x, Pass())
    choice = layer.gate(x.flatten(0, 1))
    weights, taken = choice.probs.T.topk(4, dim=-1)
    expected = torch.zeros(16, 6)
    for e in range(4):
        rows = x.flatten(0, 1)[taken[e]]
        fc1, fc2 = layer.experts.fc1, layer.experts.fc2
        given = F.linear(F.gelu(F.linear(rows, fc1.weight[e], fc1.bias[e])), fc2.weight[e], fc2.bias[e])
        expected.index_add_(0, taken[e], given * weights[e, :, None])
    torch.testing.assert_close(out.flatten(0, 1), expected)


def test_of_experts_that_choose_it_is_told_which_tokens_they_took() -> None:
    layer, x, ctx = moe(name="expert-choice", capacity=0.5), tokens(4, 4), Pass(wanted=frozenset({0}))
    out = layer(x, ctx)
    untouched = ~out.any(-1)
    assert 0 < untouched.sum() < 16
    assert ctx.stats["0.dropped"].item() == pytest.approx(untouched.float().mean().item())
    assert torch.equal(ctx.stats["0.load"], torch.full((4,), 0.25))
    assert not ctx.stats["0.kept"][untouched].any()
    assert layer.idle_parameters() == 7 * sum(p.numel() for p in layer.experts.parameters()) // 8


def test_losses_at_their_extremes() -> None:
    even, sure = torch.full((8, 4), 0.25), torch.eye(4).repeat(2, 1)
    first = torch.arange(8)[:, None] % 4
    assert balance.importance(even).item() == 0
    assert balance.switch(even, first).item() == pytest.approx(1)
    assert balance.mutual_information(even).item() == pytest.approx(0, abs=1e-6)
    assert balance.mutual_information(sure).item() == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-6)
    assert balance.switch(sure, torch.zeros(8, 1, dtype=torch.int64)).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("router", "part"),
    [
        ({"name": "sampled-top-k", "noise": 1.0}, "leave out noise"),
        ({"name": "avg-k", "bias": True}, "so no bias"),
        ({"name": "norm-k", "bias": True}, "so no bias"),
    ],
)
def test_what_a_router_would_ignore_is_refused(router: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ROUTERS.read(router)


@pytest.mark.parametrize("name", ["top-k-softmax", "renormalised", "noisy-top-k"])
def test_a_router_that_cannot_learn_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="no gradient of the task reaches it"):
        moe(top_k=1, name=name)
    moe(top_k=1, name="softmax-top-k")
    with pytest.raises(RequestError, match="more experts"):
        moe(experts=2, top_k=3)


@pytest.mark.parametrize("name", ["top-k-softmax", "softmax-top-k", "expert-choice", "noisy-top-k", "vmoe", "switch"])
def test_bf16_autocast_and_gradients(name: str) -> None:
    layer, x = moe(**ROUTERS.read(name).model_dump()).train(), tokens(8)
    exact = layer(x, Pass())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, Pass(Key.of(0)))
        plain = layer(x, Pass())
    assert (plain - exact).norm() <= 0.05 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in layer.named_parameters() if "spread" not in n)
