"""Ratios are taken repeat by repeat, and compared with what is aimed at."""

from __future__ import annotations

from typing import Any

import pytest

from modnet.bench.pairs import (
    Aim,
    Comparison,
    Finding,
    Measure,
    Skipped,
    changes,
    compare,
    faster,
    rounds,
    turns,
    within,
)
from modnet.report.benches import bench_table, told


def test_ratios_are_paired() -> None:
    found = Comparison("x", "a", "b", (1.0, 2.0, 4.0), (2.0, 2.0, 2.0))
    assert found.ratios == found.values == [2.0, 1.0, 0.5]
    assert found.ratio == found.figure == 1.0
    assert found.reached is None


def test_each_is_called_once_more_than_it_is_timed() -> None:
    calls: list[str] = []
    found = compare("x", ("a", lambda: calls.append("a")), ("b", lambda: calls.append("b")), repeats=2)
    assert calls == ["a", "b"] * 3
    assert len(found.seconds) == 2


def test_several_ways_take_turns() -> None:
    calls: list[int] = []
    found = turns([lambda: calls.append(0), lambda: calls.append(1), lambda: calls.append(2)], repeats=1)
    assert calls == [0, 1, 2] * 2
    assert [len(seconds) for seconds in found] == [1, 1, 1]
    given = iter(range(6))
    assert rounds([lambda: float(next(given)), lambda: float(next(given))], 3, untimed=1) == [(2, 4), (3, 5)]


@pytest.mark.parametrize(
    ("aim", "reached", "text"),
    [
        (faster(2), True, "≥ 2"),
        (faster(2.01), False, "≥ 2.01"),
        (within(0.5), True, "≥ 2"),
        (within(1.02), True, "≥ 0.98"),
        (Aim("most", 0.15, "seconds"), False, "≤ 150 ms"),
        (Aim("most", 1.5, "seconds"), True, "≤ 1500 ms"),
    ],
)
def test_an_aim_is_reached_or_not(aim: Aim, reached: bool, text: str) -> None:
    found = Comparison("x", "a", "b", (1.0,), (2.0,), aim)
    assert found.reached is reached
    assert found.plain()["reached"] is reached
    assert aim.text == text


def test_an_aim_may_ask_for_more_than_time() -> None:
    assert Comparison("x", "a", "b", (1.0,), (5.0,), faster(3), also=False).reached is False


def test_a_measure_has_a_bound_as_well() -> None:
    most, least = (
        Measure("x", "memory", "GB", (1.0, 2.0, 3.0), Aim(bound, 2.0, "value")) for bound in ("most", "least")
    )
    assert most.reached
    assert least.reached
    assert most.figure == 2.0
    assert Measure("x", "memory", "GB", (2.1,), Aim("most", 2.0, "value")).reached is False


def test_what_was_left_out_is_told() -> None:
    found: list[Finding] = [
        Skipped("a", "timm is not installed"),
        Comparison("b", "one", "two", (1.0,), (2.0,), faster(3), "on test 90 %"),
        Measure("c", "three", "GB", (1.0,)),
    ]
    assert list(told(found)) == ["a: skipped, timm is not installed", "b: on test 90 %"]
    assert bench_table(found).row_count == 2


def test_changes_tell_what_lies_apart() -> None:
    found: list[Finding] = [Comparison(name, "a", "b", (1.0, 1.0), (2.0, 3.0)) for name in ("x", "y", "z")]
    found += [Measure("m", "memory", "GB", (2.0,), Aim("most", 2.0, "value")), Skipped("s", "not here")]
    old: list[dict[str, Any]] = [
        {"name": "x", "ratio": 2.4, "least": 1.9, "most": 3.1},
        {"name": "y", "ratio": 1.0, "least": 0.9, "most": 1.1},
        {"name": "m", "median": 1.0, "least": 0.9, "most": 1.1},
        {"name": "z", "skipped": "not here"},
    ]
    assert changes(found, old) == [
        "x: 2.40 before, 2.50 now, within the spread",
        "y: 1.00 before, 2.50 now, faster",
        "z: 2.50, not measured before",
        "m: 1.00 before, 2.00 now, worse",
    ]
