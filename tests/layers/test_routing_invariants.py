"""What holds for every router: counts, permutations, and batches at the edge of what can be routed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import modnet.recipe.routers  # noqa: F401 - registers the names
from modnet.chain import Pass
from modnet.layers import balance
from modnet.layers.moe import MoE
from modnet.randomness import Key
from modnet.recipe.models import VMoE
from modnet.registry import ROUTERS

WIDTH, HIDDEN = 6, 5
PER_TOKEN = [name for name in ROUTERS.names() if name != "expert-choice"]
LOSSES = ("importance", "load", "gshard", "switch", "z", "mutual_information", "concentration")
ONE_CHOICE = ("softmax-top-k", "sampled-top-k", "avg-k", "norm-k", "cosine")


def layer(name: str, experts: int, top_k: int, **router: Any) -> MoE:
    with Key.of(0, name).forked():
        made = MoE(WIDTH, HIDDEN, experts, top_k, {"name": name, **router})
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.5)
    return made


def tokens(batch: int, count: int, seed: int = 0) -> Tensor:
    return Key.of(seed).normal(torch.arange(batch), count * WIDTH).view(batch, count, WIDTH)


def by_hand(moe: MoE, x: Tensor) -> Tensor:
    """Every token alone: the weighted sum of its experts, without any sorting."""
    flat, e = x.flatten(0, 1), moe.experts
    choice = moe.gate(flat, None, e.fc1.weight)
    out = torch.zeros_like(flat)
    for t, token in enumerate(flat):
        for weight, expert in zip(choice.weights[t], choice.indices[t].tolist(), strict=True):
            hidden = torch.nn.functional.gelu(e.fc1.weight[expert] @ token + e.fc1.bias[expert])
            out[t] += weight * (e.fc2.weight[expert] @ hidden + e.fc2.bias[expert])
    return out.view_as(x)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(PER_TOKEN),
    experts=st.integers(2, 7),
    batch=st.integers(1, 3),
    count=st.integers(1, 4),
    data=st.data(),
)
def test_dropless_routing_is_what_one_would_do_by_hand(
    name: str, experts: int, batch: int, count: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1 if name in ONE_CHOICE else 2, experts))
    moe, x, ctx = layer(name, experts, top_k, capacity=None, capacity_eval=None), tokens(batch, count), Pass()
    out = moe.eval()(x, ctx)
    torch.testing.assert_close(out, by_hand(moe, x), atol=1e-4, rtol=1e-4)
    pairs = batch * count * top_k
    counts = ctx.stats["0.load"] * pairs
    assert counts.round().sum().item() == pairs  # also with fewer tokens than experts
    assert ctx.stats["0.dropped"].item() == 0


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(PER_TOKEN), factor=st.sampled_from([0.3, 0.8, 1.0, 1.6]), seed=st.integers(0, 9))
def test_an_expert_keeps_its_places_and_no_more(name: str, factor: float, seed: int) -> None:
    moe, x = layer(name, 4, 2, capacity=factor, capacity_eval=None, group=None), tokens(3, 5, seed)
    ctx = Pass(wanted=frozenset({0}))
    moe.eval()(x, ctx)
    places = moe.capacity(15)
    assert places is not None
    chosen, kept = ctx.stats["0.experts"].flatten(), ctx.stats["0.kept"].flatten()
    counts = chosen.bincount(minlength=4)
    assert torch.equal(chosen[kept].bincount(minlength=4), counts.clamp(max=places))
    assert ctx.stats["0.dropped"].item() == pytest.approx((counts - places).clamp(min=0).sum().item() / 30, abs=1e-6)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_all_tokens_to_one_expert_and_none_to_the_others(name: str) -> None:
    moe = layer(name, 5, 2, capacity=None)
    x = tokens(1, 1).expand(4, 3, WIDTH).contiguous().requires_grad_()  # equal tokens have equal experts
    ctx = Pass()
    moe.eval()
    out = moe(x, ctx)
    assert sorted(ctx.stats["0.load"].tolist())[:3] == [0, 0, 0]
    torch.testing.assert_close(out, by_hand(moe, x), atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    grads = moe.experts.fc1.weight.grad
    assert grads is not None
    assert ((grads.abs().amax((1, 2)) > 0) == (ctx.stats["0.load"] > 0)).all()  # zeros, not None, without a token


@pytest.mark.parametrize("name", PER_TOKEN)
def test_permuted_experts_change_nothing(name: str) -> None:
    moe, x = layer(name, 5, 2, capacity=None, capacity_eval=None).eval(), tokens(2, 4)
    out, order = moe(x, Pass()), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for key, p in moe.named_parameters():
            if not any(shared in key for shared in ("project", "temperature", "inner")):
                p.copy_(p[order].clone())
    torch.testing.assert_close(moe(x, Pass()), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_every_loss_is_finite_and_duplicating_the_batch_changes_none(name: str, size: tuple[int, int]) -> None:
    moe = layer(name, 4, 2, group=None, capacity=None, **dict.fromkeys(LOSSES, 0.1)).train()
    x, eps = tokens(*size), Key.of(3).normal(torch.arange(size[0] * size[1]), 4)
    keys = moe.experts.fc1.weight
    once = moe.gate.loss(moe.gate(x.flatten(0, 1), eps, keys))
    twice = moe.gate.loss(moe.gate(x.repeat(2, 1, 1).flatten(0, 1), eps.repeat(2, 1), keys))
    assert once is not None
    assert twice is not None
    assert once.isfinite()
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)


def test_sampled_experts_follow_their_probabilities_and_the_best_stay() -> None:
    moe = layer("sampled-top-k", 4, 2, sampled=1)
    gate, n = moe.gate, 20_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    gate.logits = lambda x, layer: logits.expand(len(x), 4)  # type: ignore[method-assign]
    choice = gate(torch.zeros(n, WIDTH), Key.of(1).normal(torch.arange(n), 4))
    assert (choice.indices == 0).any(-1).all()
    assert (choice.indices[:, 0] != choice.indices[:, 1]).all()
    drawn = choice.indices.flatten().bincount(minlength=4)[1:] / n
    torch.testing.assert_close(drawn, logits[1:].softmax(0), atol=0.02, rtol=0)
    torch.testing.assert_close(choice.weights, logits.softmax(0)[choice.indices])
    calm = gate(torch.zeros(1, WIDTH))
    assert set(calm.indices.flatten().tolist()) == {0, 1}


def test_concentration_is_the_contrary_of_balance() -> None:
    even, one = torch.full((8, 4), 0.25), torch.eye(4)[:1].expand(8, 4)
    assert balance.concentration(even).item() == pytest.approx(torch.tensor(4.0).log().item())
    assert balance.concentration(one).item() == 0


@pytest.mark.parametrize("name", ["renormalised", "top-k-softmax", "noisy-top-k"])
def test_one_choice_of_weight_one_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match="no gradient of the task reaches it"):
        VMoE(experts=4, top_k=1, router=ROUTERS.read(name))


@pytest.mark.parametrize("name", [n for n in ONE_CHOICE if n not in ("avg-k", "norm-k")])
def test_one_choice_gives_other_routers_a_gradient(name: str) -> None:
    moe = layer(name, 4, 1)
    moe(tokens(2, 3), Pass()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moe.gate.parameters())


def test_global_balance_ignores_groups() -> None:
    x = tokens(4, 3).flatten(0, 1)
    local, everyone = (
        layer("softmax-top-k", 4, 2, switch=1.0, balance_scope=scope).gate for scope in ("local", "global")
    )
    everyone.load_state_dict(local.state_dict())
    whole = local.loss(local(x))
    grouped, ignoring = local.loss(local(x), 3), everyone.loss(everyone(x), 3)
    assert whole is not None
    assert grouped is not None
    assert ignoring is not None
    torch.testing.assert_close(ignoring, whole)
    assert abs(grouped.item() - whole.item()) > 1e-3
