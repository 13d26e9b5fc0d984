"""Sorted, grouped dispatch against a loop over tokens, with every way in which experts can be filled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.layers import grouped
from modnet.layers.dispatch import Order, combine, dispatch, plan
from modnet.layers.grouped import grouped_linear
from modnet.randomness import Key


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    count = torch.Size(shape).numel()
    return Key.of(seed, "numbers").normal(torch.arange(1), count).view(shape).to(dtype)


def choices(tokens: int, top_k: int, experts: int, seed: int) -> Tensor:
    ranks = Key.of(seed, "choices").uniform(torch.arange(tokens), experts).argsort(dim=1)
    return ranks[:, :top_k]


def by_token(indices: Tensor, parts: tuple[Tensor, ...], kept: Tensor | None) -> Tensor:
    x, weight, bias, gates = parts
    rows = [torch.zeros(weight.shape[1], dtype=x.dtype) for _ in x]
    for t, experts in enumerate(indices.tolist()):
        for k, e in enumerate(experts):
            if kept is None or kept[t, k]:
                rows[t] = rows[t] + gates[t, k] * (weight[e] @ x[t] + bias[e])
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1])


def places_by_loop(indices: Tensor, order: str, scores: Tensor, group: int) -> Tensor:
    tokens, top_k = indices.shape
    ranked = sorted(range(tokens), key=lambda t: -scores[t].item()) if order == "batch-priority" else range(tokens)
    pairs = [(t, k) for t in ranked for k in range(top_k)]
    if order != "vanilla":
        pairs.sort(key=lambda pair: pair[1])  # stable: tokens stay in their order
    taken: dict[tuple[int, int], int] = {}
    slots = torch.zeros_like(indices)
    for t, k in pairs:
        queue = (t // group, int(indices[t, k]))
        slots[t, k] = taken.get(queue, 0)
        taken[queue] = int(slots[t, k]) + 1
    return slots


SIZES = st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(3, 6), st.integers(0, 1000))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, capacity=st.one_of(st.none(), st.integers(0, 4)), group=st.sampled_from([None, 1, 2, 3]))
@pytest.mark.parametrize("order", ["vanilla", "choice-major", "batch-priority"])
def test_it_is_a_loop_over_tokens(
    order: Order, sizes: tuple[int, int, int, int], capacity: int | None, group: int | None
) -> None:
    tokens, top_k, experts, seed = sizes
    indices = choices(tokens, top_k, experts, seed)
    scores = Key.of(seed, "scores").uniform(torch.arange(tokens))[:, 0]
    found = plan(indices, experts, capacity, order, scores, group)
    if capacity is not None:
        slots = places_by_loop(indices, order, scores, group or max(tokens, 1))
        assert found.slots is not None
        assert torch.equal(found.slots, slots)
        assert found.kept is not None
        assert torch.equal(found.kept, slots < capacity)
    parts = (numbers(tokens, 3), numbers(experts, 2, 3), numbers(experts, 2), numbers(tokens, top_k))
    given_rows = grouped_linear(dispatch(parts[0], found), parts[1], parts[2], found.ends)
    out = combine(given_rows, parts[3], found, tokens)
    torch.testing.assert_close(out, by_token(indices, parts, found.kept))


CHOSEN = [
    [[0, 1], [0, 1], [1, 0]],  # experts 2 and 3 get nothing
    [[2], [2], [2], [2], [2]],  # all to one
    [[3, 0]],  # fewer tokens than experts, a batch of one
    [[0, 1], [2, 3], [3, 1], [1, 2]],
]


@pytest.mark.parametrize("capacity", [None, 0, 1, 2])
@pytest.mark.parametrize("indices", CHOSEN)
def test_gradients(indices: Any, capacity: int | None) -> None:
    chosen = torch.tensor(indices)
    found = plan(chosen, 4, capacity)
    tokens, top_k = chosen.shape

    def through(x: Tensor, weight: Tensor, bias: Tensor, gates: Tensor) -> Tensor:
        return combine(grouped_linear(dispatch(x, found), weight, bias, found.ends), gates, found, tokens)

    parts = (numbers(tokens, 3), numbers(4, 2, 3), numbers(4, 2), numbers(tokens, top_k))
    assert torch.autograd.gradcheck(through, tuple(part.requires_grad_() for part in parts))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precisions_agree(dtype: torch.dtype, tolerance: float) -> None:
    indices = choices(40, 2, 4, seed=1)
    found = plan(indices, 4)
    exact = [part.requires_grad_() for part in (numbers(40, 8), numbers(4, 6, 8), numbers(4, 6), numbers(40, 2))]
    low = [part.detach().to(dtype).requires_grad_() for part in exact]
    for x, weight, bias, gates in (exact, low):
        out = combine(grouped_linear(dispatch(x, found), weight, bias, found.ends), gates, found, 40)
        out.sum().backward()
    for a, b in zip(exact, low, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() <= tolerance * a.grad.norm()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("capacity", [None, 1])
@pytest.mark.parametrize("indices", CHOSEN)
def test_one_product_for_all_experts_gives_the_same(
    indices: Any, capacity: int | None, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(torch.tensor(indices), 4, capacity)  # with a capacity, the last row is no expert's
    shapes = [(len(found.tokens), 8), (4, 16, 8), *([(4, 16)] if biased else [])]
    results = []
    for serves in (False, True):
        monkeypatch.setattr(grouped, "grouped_mm_serves", lambda *_, serves=serves: serves)
        parts = [numbers(*shape, dtype=torch.float32).requires_grad_() for shape in shapes]
        x, weight, bias = [*parts, None][:3]
        out = grouped_linear(x, weight, bias, found.ends)
        results.append((out, *torch.autograd.grad(out.square().sum(), parts)))
    torch.testing.assert_close(*results)


def test_the_operators_keep_their_promises() -> None:
    found = plan(choices(6, 2, 3, seed=0), 3, capacity=2)
    parts = (
        numbers(len(found.tokens), 4).requires_grad_(),
        numbers(3, 5, 4).requires_grad_(),
        numbers(3, 5),
        found.ends,
    )
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(grouped_linear, parts, test_utils=checks)


def test_a_priority_needs_scores() -> None:
    with pytest.raises(ValueError, match="score"):
        plan(choices(3, 1, 2, seed=0), 2, 1, "batch-priority")
