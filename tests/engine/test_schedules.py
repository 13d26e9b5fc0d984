from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modnet.engine.schedules import constant, cosine, cosine_epochwise, epochwise_lr, linear, warmup_steps
from modnet.recipe.training import EpochwiseCosine, Schedule
from modnet.registry import SCHEDULES


@pytest.mark.parametrize(
    ("length", "steps"), [(7, 7), ("10%", 20), ("2 epochs", 40), ("1 epoch", 20), ("0.5 epochs", 10), (999, 200)]
)
def test_warmup_lengths(length: int | str, steps: int) -> None:
    assert warmup_steps(length, 200, 20) == steps


def test_cosine_by_hand() -> None:
    rate = cosine(Schedule(warmup=2, start=0.5, floor=0.1), 6, 3, 2.0)
    assert [rate(step) for step in range(7)] == pytest.approx(
        [1.5, 2.0, 2.0, 2 * (0.1 + 0.9 * 0.853553), 2 * 0.55, 2 * (0.1 + 0.9 * 0.146447), 0.2], abs=1e-5
    )


def test_linear_and_constant_by_hand() -> None:
    line = linear(Schedule(name="linear", warmup=0), 4, 2, 1.0)
    assert [line(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    flat = constant(Schedule(name="constant", warmup=2), 4, 2, 1.0)
    assert [flat(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@given(
    st.sampled_from([cosine, linear, constant]),
    st.integers(1, 60),
    st.one_of(st.integers(0, 80), st.sampled_from(["0%", "10%", "100%", "1 epoch"])),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_rates_rise_then_never_rise_and_stay_in_range(
    build: Any, total: int, warmup: int | str, start: float, floor: float
) -> None:
    params = Schedule(warmup=warmup, start=start, floor=floor)
    rate, turn = build(params, total, 5, 1.0), warmup_steps(warmup, total, 5)
    rates = [rate(step) for step in range(total)]
    assert all(min(start, floor) - 1e-9 <= r <= 1 + 1e-9 for r in rates)
    assert all(r > 0 for r in rates)
    assert all(a <= b + 1e-9 for a, b in pairwise(rates[:turn]))
    assert all(a >= b - 1e-9 for a, b in pairwise(rates[turn:]))
    assert max(rates) == pytest.approx(1)


def test_epochwise_as_the_reference_sets_it() -> None:
    """Three values of the reference's pre-training run: scaled rate 2e-3, 300 epochs, 20 of warm-up."""
    lagging, right = EpochwiseCosine(quirk_lag=True), EpochwiseCosine()
    assert epochwise_lr(1, 2e-3, lagging, 300) == 1e-6
    assert epochwise_lr(150, 2e-3, lagging, 300) == pytest.approx(0.0010154194251956645, abs=1e-15)
    assert epochwise_lr(149, 2e-3, right, 300) == pytest.approx(0.0010154194251956645, abs=1e-15)
    assert epochwise_lr(0, 2e-3, EpochwiseCosine(warmup_epochs=0), 100) == 2e-3


def test_epochwise_is_constant_within_an_epoch() -> None:
    params = EpochwiseCosine(warmup_epochs=1)
    rate = cosine_epochwise(params, 12, 4, 2e-3)
    assert [rate(step) for step in range(12)] == [epochwise_lr(e, 2e-3, params, 3) for e in range(3) for _ in range(4)]


def test_every_registered_schedule_builds() -> None:
    for name in SCHEDULES.names():
        entry = SCHEDULES.get(name)
        rate = entry.resolve()(entry.params(**entry.preset), 10, 5, 1.0)
        assert 0 < rate(3) <= 1
