"""Ratios are taken repeat by repeat; every subject runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modnet.bench.pairs import Comparison, compare
from modnet.bench.subjects import SUBJECTS
from modnet.cli.main import app


def test_ratios_are_paired() -> None:
    found = Comparison("x", "a", "b", (1.0, 2.0, 4.0), (2.0, 2.0, 2.0))
    assert found.ratios == [2.0, 1.0, 0.5]
    assert found.ratio == 1.0


def test_each_is_called_once_more_than_it_is_timed() -> None:
    calls: list[str] = []
    found = compare("x", ("a", lambda: calls.append("a")), ("b", lambda: calls.append("b")), repeats=2)
    assert calls == ["a", "b"] * 3
    assert len(found.seconds) == 2


@pytest.mark.parametrize("subject", ["loader", "modules"])
def test_a_subject_runs_and_is_saved(subject: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["bench", subject, "--repeats", "1", "--save", str(path)])
    assert done.exit_code == 0, done.output
    assert "times faster" in done.output
    assert json.loads(path.read_text())["comparisons"][0]["name"] == subject


def test_unknown_subjects_are_named() -> None:
    done = CliRunner().invoke(app, ["bench", "warp"])
    assert done.exit_code != 0
    assert "warp" in str(done.exception)
    assert set(SUBJECTS) == {"startup", "loader", "step", "modules", "moe"}
