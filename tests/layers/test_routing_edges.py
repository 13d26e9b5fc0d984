"""Routing at its edges: one expert, one token, fewer tokens than experts, places for all or for few, permutations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Pass
from modnet.layers import balance
from modnet.layers.expert_attention import ExpertAttention
from modnet.layers.moe import MoE, capacity_of, tutel_capacity
from modnet.layers.stickbreaking import attend
from modnet.randomness import Key
from tests.layers.test_routing_invariants import HIDDEN, LOSSES, PER_TOKEN, WIDTH, by_hand, layer, tokens

FEW = settings(max_examples=20, deadline=None)
ALL_ALONE = [name for name in PER_TOKEN if name not in ("renormalised", "top-k-softmax", "noisy-top-k")]


@FEW
@given(name=st.sampled_from(ALL_ALONE), batch=st.integers(1, 3), count=st.integers(1, 3), seed=st.integers(0, 9))
def test_one_expert_is_a_dense_layer(name: str, batch: int, count: int, seed: int) -> None:
    moe, x = layer(name, 1, 1).eval(), tokens(batch, count, seed)
    first, second = moe.experts.fc1, moe.experts.fc2
    dense = F.linear(F.gelu(F.linear(x, first.weight[0], first.bias[0])), second.weight[0], second.bias[0])
    torch.testing.assert_close(moe(x, Pass()), dense, atol=1e-5, rtol=1e-5)


@FEW
@given(name=st.sampled_from(PER_TOKEN), order=st.sampled_from(["vanilla", "choice-major", "batch-priority"]),
       batch=st.integers(1, 3), count=st.integers(1, 4), group=st.sampled_from([None, 1]))  # fmt: skip
def test_places_for_all_are_as_good_as_no_limit(
    name: str, order: str, batch: int, count: int, group: int | None
) -> None:
    settings_of: dict[str, Any] = {"capacity_eval": None, "order": order, "group": group}
    free = layer(name, 4, 2, capacity=None, **settings_of).eval()
    wide = layer(name, 4, 2, capacity=4.0, **settings_of).eval()
    x, ctx = tokens(batch, count), Pass()
    assert torch.equal(wide(x, ctx), free(x, Pass()))
    assert ctx.stats["0.dropped"].item() == 0


@FEW
@given(name=st.sampled_from(PER_TOKEN), factor=st.sampled_from([0.3, 0.6, 1.0]), seed=st.integers(0, 99))
def test_by_batch_priority_the_order_of_tokens_does_not_matter(name: str, factor: float, seed: int) -> None:
    moe = layer(name, 4, 2, capacity=factor, capacity_eval=None, order="batch-priority", group=None).eval()
    x = tokens(1, 7, seed)
    order = Key.of(seed, "order").permutation(7)
    torch.testing.assert_close(moe(x[:, order], Pass()), moe(x, Pass())[:, order], atol=1e-5, rtol=1e-5)


@FEW
@given(experts=st.integers(1, 6), batch=st.integers(1, 2), count=st.integers(1, 4), factor=st.sampled_from([0.5, 1, 3]))
def test_experts_that_choose_take_what_there_is(experts: int, batch: int, count: int, factor: float) -> None:
    moe, x = layer("expert-choice", experts, 1, capacity=factor).eval(), tokens(batch, count)
    flat = x.flatten(0, 1)
    places = min(len(flat), math.ceil(len(flat) * factor / experts))
    weights, taken = moe.gate(flat).probs.T.topk(places, dim=-1)
    expected = torch.zeros_like(flat)
    for e in range(experts):
        for weight, t in zip(weights[e], taken[e].tolist(), strict=True):
            hidden = F.gelu(moe.experts.fc1.weight[e] @ flat[t] + moe.experts.fc1.bias[e])
            expected[t] += weight * (moe.experts.fc2.weight[e] @ hidden + moe.experts.fc2.bias[e])
    torch.testing.assert_close(moe(x, Pass()), expected.view_as(x), atol=1e-4, rtol=1e-4)


@FEW
@given(name=st.sampled_from(PER_TOKEN), seed=st.integers(0, 99))
def test_losses_do_not_see_the_order_of_tokens_or_experts(name: str, seed: int) -> None:
    gate = layer(name, 4, 2, group=None, capacity=None, **dict.fromkeys(LOSSES, 0.1)).gate
    logits = Key.of(seed).normal(torch.arange(6), 4)
    eps = Key.of(seed, "eps").normal(torch.arange(6), 4)
    std = torch.full_like(logits, 0.3)

    def loss(logits: Tensor, eps: Tensor) -> Tensor:
        found = gate.loss(gate.choose(logits, logits + eps * std, std))
        assert found is not None
        return found

    rows, columns = Key.of(seed, "rows").permutation(6), Key.of(seed, "columns").permutation(4)
    torch.testing.assert_close(loss(logits[rows][:, columns], eps[rows][:, columns]), loss(logits, eps))


@FEW
@given(experts=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
def test_chances_of_the_load(experts: int, seed: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    clean = Key.of(seed).normal(torch.arange(4), experts).double()
    noisy = clean + 0.5 * Key.of(seed, "noise").normal(torch.arange(4), experts).double()
    found = balance.chances(clean, noisy, 0.5, top_k)
    assert ((found >= 0) & (found <= 1)).all()
    threshold = noisy.sort(-1, descending=True).values[:, top_k - 1 : top_k]
    torch.testing.assert_close(found, torch.special.ndtr((clean - threshold) / 0.5))
    if top_k == experts:
        least = noisy.amin(-1, keepdim=True)
        torch.testing.assert_close(found, torch.special.ndtr((clean - least) / 0.5))


def test_the_gradient_of_the_load_goes_through_its_threshold() -> None:
    weight = Key.of(0, "router").normal(torch.arange(4), 3).double().requires_grad_()
    x, eps = Key.of(1).normal(torch.arange(5), 3).double(), Key.of(2).normal(torch.arange(5), 4).double()

    def loss(weight: Tensor) -> Tensor:
        logits = x @ weight.T
        return balance.load(logits, logits + 0.3 * eps, 0.3, 2)

    assert torch.autograd.gradcheck(loss, (weight,))


@pytest.mark.parametrize(
    ("tokens_", "choices", "experts", "factor", "vmoe", "tutel"),
    [(9, 2, 4, 0.5, 3, 2), (9, 2, 4, 1.5, 7, 8), (8, 1, 8, 1.05, 2, 1), (1, 2, 4, 1.5, 1, 2), (3, 2, 8, 0.9, 1, 0)],
)
def test_places_by_both_rules(tokens_: int, choices: int, experts: int, factor: float, vmoe: int, tutel: int) -> None:
    assert capacity_of(tokens_ * choices, experts, factor) == vmoe
    assert tutel_capacity(tokens_, choices, experts, factor) == tutel
    assert tutel_capacity(tokens_, choices, experts, factor, 4) == 4 * math.ceil(tutel / 4)
    moe = layer("softmax-top-k", experts, choices, capacity=factor, capacity_rule="tutel")
    assert moe.capacity(tokens_) == tutel


def attention(experts: int, top_k: int) -> ExpertAttention:
    with Key.of(0, "attention").forked():
        made = ExpertAttention(WIDTH, 4, 2, experts, top_k, {"name": "perceptron", "hidden": 5})
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.5)
    return made.eval()


def attended_by_hand(layer: ExpertAttention, x: Tensor) -> Tensor:
    """Every token alone through each of its experts, by stick-breaking attention to all tokens before it."""
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        choice = layer.gate(row)
        k, v = (part(row)[None].unflatten(-1, (layer.heads, -1)) for part in (layer.key, layer.value))
        for t in range(len(row)):
            for weight, e in zip(choice.weights[t], choice.indices[t].tolist(), strict=True):
                q = (layer.query.weight[e] @ row[t]).view(1, 1, 1, layer.heads, -1)
                mixed = attend(q, k[:, : t + 1], v[:, : t + 1]).flatten()
                out[i, t] += weight * (layer.out.weight[e] @ mixed)
    return out


@FEW
@given(experts=st.integers(1, 5), batch=st.integers(1, 2), count=st.integers(1, 4), seed=st.integers(0, 9),
       data=st.data())  # fmt: skip
def test_experts_of_attention_are_what_one_would_do_by_hand(
    experts: int, batch: int, count: int, seed: int, data: st.DataObject
) -> None:
    made, x, ctx = attention(experts, data.draw(st.integers(1, experts))), tokens(batch, count, seed), Pass()
    torch.testing.assert_close(made(x, ctx), attended_by_hand(made, x), atol=1e-4, rtol=1e-4)
    assert ctx.stats["0.attention.load"].sum().item() == pytest.approx(1)


def test_all_tokens_to_one_expert_of_attention() -> None:
    made, ctx = attention(4, 1), Pass()
    x = tokens(1, 1).expand(2, 3, WIDTH).contiguous()
    out = made(x, ctx)
    torch.testing.assert_close(out, attended_by_hand(made, x), atol=1e-4, rtol=1e-4)
    out.square().sum().backward()
    used = ctx.stats["0.attention.load"] > 0
    assert used.sum() == 1
    grad = made.query.weight.grad
    assert grad is not None
    assert torch.equal(grad.abs().amax((1, 2)) > 0, used)


@FEW
@given(momentum=st.sampled_from([0.5, 0.9]), steps=st.integers(0, 4), seed=st.integers(0, 9))
def test_rows_with_momentum_follow_the_keys(momentum: float, steps: int, seed: int) -> None:
    moe, x = layer("avg-k", 3, 2, momentum=momentum).train(), tokens(2, 2, seed)
    weight = moe.experts.fc1.weight
    moe.settle()
    rows = weight.detach().mean(1)
    assert not list(moe.gate.parameters())
    for step in range(steps):
        for _ in range(2):  # micro-batches of one step
            moe(x, Pass(Key.of(seed, step)))
        assert torch.allclose(moe.gate.rows, rows)  # type: ignore[arg-type]
        with torch.no_grad():
            weight.add_(Key.of(seed, "step", step).normal(torch.arange(3), HIDDEN * WIDTH).view_as(weight))
        rows = momentum * rows + (1 - momentum) * weight.detach().mean(1)
    torch.testing.assert_close(moe.eval().gate(x.flatten(0, 1), None, weight).logits, x.flatten(0, 1) @ rows.T)
    torch.testing.assert_close(moe(x, Pass()), by_hand(moe, x), atol=1e-4, rtol=1e-4)


def test_without_momentum_nothing_is_kept() -> None:
    held: MoE = layer("avg-k", 3, 2)
    assert "gate.rows" not in held.state_dict()
    assert "gate.rows" in layer("avg-k", 3, 2, momentum=0.9).state_dict()
