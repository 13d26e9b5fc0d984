"""Intervals over seeds, and differences paired by seed, against values worked out by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from modnet.evaluation.summary import interval, summarise
from modnet.report.tables import results_table

RESULTS = {
    0: {"e2e": {"top1": 80.0, "shift_top1": 50.0, "parameters": 1000}, "kd": {"top1": 82.0, "shift_top1": 51.0}},
    1: {"e2e": {"top1": 84.0, "shift_top1": 54.0, "parameters": 1000}, "kd": {"top1": 87.0, "shift_top1": 53.0}},
}


def test_interval_is_students_t() -> None:
    found = interval([80.0, 84.0])
    assert found["mean"] == 82.0
    assert found["half_width"] == pytest.approx(12.7062 * 8**0.5 / 2**0.5, rel=1e-5)
    assert interval([1.0])["half_width"] is None


def test_differences_are_paired_by_seed() -> None:
    pair = summarise(RESULTS)["differences"]["kd - e2e"]
    assert pair["top1"]["values"] == [2.0, 3.0]
    assert pair["shift_top1"]["values"] == [1.0, -1.0]


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(summarise(RESULTS), width))
    text = console.export_text()
    assert "82.00" in text
    assert "kd - e2e: top1 +2.50" in text
    assert max(map(len, text.splitlines())) <= width


def test_shifts_are_shown_by_part_with_severities_averaged() -> None:
    parts = {"fog/1": 60.0, "fog/2": 40.0, "sketch": 30.0, "mean": 43.0}
    row = {"top1": 80.0, "suites": {"x-c": {"mean": {"top1": 43.0}, "top1": parts}}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(summarise({0: {"e2e": row}})))
    lines = [line.split("│")[1:3] for line in console.export_text().splitlines() if "fog" in line or "mean" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [["fog", "50.00"], ["mean", "43.00"]]
