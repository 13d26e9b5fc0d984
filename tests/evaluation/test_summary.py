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
