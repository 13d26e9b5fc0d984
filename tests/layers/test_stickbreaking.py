"""Stick-breaking attention."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.layers.stickbreaking import attend, stick_breaking

FEW = settings(max_examples=15, deadline=None)


def inputs(seed: int, length: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return scale * torch.randn(2, length, 2, 2, 4), torch.randn(2, length, 2, 4), torch.randn(2, length, 2, 4)


def by_hand(q: Tensor, k: Tensor) -> Tensor:
    """From the nearest key backwards: each takes its share of what is left."""
    length = q.shape[1]
    share = torch.einsum("bqknd,bjnd->bknqj", q, k).div(q.shape[-1] ** 0.5).sigmoid()
    out = torch.zeros_like(share)
    for i in range(length):
        rest = torch.ones_like(share[..., 0, 0])
        for j in range(i, -1, -1):
            out[..., i, j] = share[..., i, j] * rest
            rest = rest * (1 - share[..., i, j])
    return out


@FEW
@given(st.integers(0, 5), st.integers(1, 7), st.sampled_from([0.5, 2.0, 20.0]))
def test_it_is_the_recurrence(seed: int, length: int, scale: float) -> None:
    q, k, _ = inputs(seed, length, scale)
    weights = stick_breaking(q, k)
    torch.testing.assert_close(weights, by_hand(q, k), atol=2e-6, rtol=1e-4)
    assert weights.sum(-1).max() <= 1 + 1e-5


@FEW
@given(st.integers(0, 5), st.integers(2, 7), st.data())
def test_later_bytes_change_nothing_before_them(seed: int, length: int, data: st.DataObject) -> None:
    q, k, v = inputs(seed, length)
    at = data.draw(st.integers(1, length - 1))
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, at] += 1
    changed_v[:, at] -= 2
    before, after = attend(q, k, v), attend(q, changed_k, changed_v)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.allclose(before[:, at:], after[:, at:])


def test_with_a_history_as_without() -> None:
    q, k, v = inputs(0, 6)
    torch.testing.assert_close(attend(q[:, -2:], k, v), attend(q, k, v)[:, -2:])


def test_padding_is_not_seen() -> None:
    q, k, v = inputs(0, 6)
    keep = torch.ones(2, 6)
    keep[:, 2] = 0
    weights = stick_breaking(q, k, keep)
    assert float(weights[..., 2].abs().max()) == 0
    others = [0, 1, 3, 4, 5]
    expected = stick_breaking(q[:, others], k[:, others])
    torch.testing.assert_close(weights[..., others, :][..., others], expected)
    assert attend(q, k, v, keep).isfinite().all()


def test_extreme_scores_stay_finite_both_ways() -> None:
    q, k, v = (t.requires_grad_() for t in inputs(0, 40, scale=100.0))
    out = attend(q, k, v)
    out.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))
