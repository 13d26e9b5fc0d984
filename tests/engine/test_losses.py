"""Losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss, blend, kd_term, soft_cross_entropy
from modnet.randomness import Key

SIZES = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(0, 99))


def logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    return 2 * Key.of(seed).normal(torch.arange(rows), classes)


def batch(labels: Tensor, target: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels)), target)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.floats(0, 0.5))
def test_smoothing_labels_is_a_soft_target(sizes: tuple[int, int, int], smoothing: float) -> None:
    rows, classes, seed = sizes
    s = logits(rows, classes, seed)
    y = torch.arange(rows) % classes
    one_hot = torch.nn.functional.one_hot(y, classes).float()
    by_hand = -(((1 - smoothing) * one_hot + smoothing / classes) * s.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(base_loss(batch(y), s, smoothing), by_hand)
    torch.testing.assert_close(soft_cross_entropy(s, one_hot, smoothing), by_hand)
    assert torch.equal(base_loss(batch(y, one_hot), s, smoothing), soft_cross_entropy(s, one_hot, smoothing))


def test_mixed_labels_take_the_place_of_labels() -> None:
    s, target = logits(3, 4), torch.full((3, 4), 0.25)
    loss = base_loss(batch(torch.zeros(3, dtype=torch.int64), target), s)
    torch.testing.assert_close(loss, -s.log_softmax(1).mean())


@settings(max_examples=25, deadline=None)
@given(SIZES, st.floats(0.5, 4))
def test_the_two_normalisers_differ_by_the_number_of_classes(sizes: tuple[int, int, int], tau: float) -> None:
    rows, classes, seed = sizes
    s, t = logits(rows, classes, seed), logits(rows, classes, seed + 1)
    p, q = (t / tau).softmax(1), (s / tau).softmax(1)
    by_hand = tau**2 * (p * (p.log() - q.log())).sum() / rows
    torch.testing.assert_close(kd_term(s, t, tau, norm="batchmean"), by_hand, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kd_term(s, t, tau, norm="numel") * classes, by_hand, atol=1e-5, rtol=1e-4)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    s = logits(4, 5).requires_grad_()
    term = kd_term(s, s, 2.0, norm="batchmean")
    assert term.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(term, s)
    torch.testing.assert_close(gradient, torch.zeros_like(s), atol=1e-6, rtol=0)


def test_hard_distillation_follows_the_teachers_first_choice() -> None:
    s, t = logits(4, 5), logits(4, 5, 1)
    expected = torch.nn.functional.cross_entropy(s, t.argmax(1))
    assert torch.equal(kd_term(s, t, 3.0, "hard"), expected)
    assert torch.equal(kd_term(s, t, 1.0, "hard", "batchmean"), expected)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_teacher_takes_no_gradient_and_the_student_does(kind: str) -> None:
    s, t = logits(4, 5).requires_grad_(), logits(4, 5, 1).requires_grad_()
    kd_term(s, t, 2.0, kind).backward()  # type: ignore[arg-type]
    assert t.grad is None
    assert s.grad is not None
    assert s.grad.abs().sum() > 0


def test_half_precision_logits_are_compared_in_single() -> None:
    s, t = logits(4, 5).bfloat16(), logits(4, 5, 1).bfloat16()
    assert kd_term(s, t).dtype == torch.float32
    assert base_loss(batch(torch.zeros(4, dtype=torch.int64)), s).dtype == torch.float32
    torch.testing.assert_close(kd_term(s, t), kd_term(s.float(), t.float()))


def test_alpha_is_the_teachers_weight() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert blend(one, two, 0).item() == 1
    assert blend(one, two, 1).item() == 2
    assert blend(one, two, 0.25).item() == pytest.approx(1.25)


def test_every_position_of_a_text_counts_as_a_sample() -> None:
    torch.manual_seed(0)
    logits, labels, teacher = torch.randn(2, 5, 7), torch.randint(7, (2, 5)), torch.randn(2, 5, 7)
    text = Batch(torch.zeros(2, 5), labels, torch.arange(2))
    flat = Batch(torch.zeros(10), labels.flatten(), torch.arange(10))
    torch.testing.assert_close(base_loss(text, logits, 0.1), base_loss(flat, logits.flatten(0, 1), 0.1))
    expected = kd_term(logits.flatten(0, 1), teacher.flatten(0, 1), 2.0, "soft", "batchmean")
    torch.testing.assert_close(kd_term(logits, teacher, 2.0, "soft", "batchmean"), expected)
