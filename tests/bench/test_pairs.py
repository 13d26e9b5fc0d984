"""Ratios are taken repeat by repeat; every subject runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modnet.bench import modules, steps, teachers
from modnet.bench.pairs import Comparison, changes, compare
from modnet.bench.subjects import SUBJECTS
from modnet.chain import Chain
from modnet.cli.bench import SUBJECTS as LISTED
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


@pytest.fixture
def toy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which every subject runs in a moment."""
    for module in (modules, steps, teachers):
        monkeypatch.setattr(module, "BATCH", 4)
        monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(steps, "CHECKPOINT_STEPS", 3)
    monkeypatch.setattr(modules, "CASES", {"K = 2": (2, 1)})
    monkeypatch.setattr(modules.Phase.__init__, "__defaults__", (2,))


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("loader", ["loader"]),
        ("step", ["step", "step, epoch with augmentation"]),
        ("checkpoint", ["checkpoint"]),
        ("modules", ["modules fused, K = 2", "modules fused, frozen tail, K = 2", "modules replayed, K = 2"]),
        ("teacher-cache", [f"teacher-cache {what}" for what in ("fp32", "fp16", "top-k", "first student")]),
    ],
)
def test_a_subject_runs_and_is_saved(toy_sizes: None, subject: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["bench", subject, "--repeats", "1", "--save", str(path)])
    assert done.exit_code == 0, done.output
    assert "times faster" in done.output
    assert [entry["name"] for entry in json.loads(path.read_text())["comparisons"]] == names


def test_figures_are_compared_and_a_trace_is_written(toy_sizes: None, tmp_path: Path) -> None:
    old, trace = tmp_path / "old.json", tmp_path / "trace.json"
    entry = {"name": "checkpoint", "ratio": 1000.0, "least": 900.0, "most": 1100.0}
    old.write_text(json.dumps({"comparisons": [entry]}))
    done = CliRunner().invoke(
        app, ["bench", "checkpoint", "--repeats", "1", "--compare", str(old), "--profile", str(trace)]
    )
    assert done.exit_code == 0, done.output
    assert "checkpoint: 1000.00 before" in done.output
    assert "slower" in done.output
    events = json.loads(trace.read_text())["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)


def test_changes_tell_what_lies_apart() -> None:
    found = [Comparison(name, "a", "b", (1.0, 1.0), (2.0, 3.0)) for name in ("x", "y", "z")]
    old = [
        {"name": "x", "ratio": 2.4, "least": 1.9, "most": 3.1},
        {"name": "y", "ratio": 1.0, "least": 0.9, "most": 1.1},
    ]
    assert changes(found, old) == [
        "x: 2.40 before, 2.50 now, within the spread",
        "y: 1.00 before, 2.50 now, faster",
        "z: 2.50, not measured before",
    ]


def test_the_published_phase_learns_what_the_fused_one_learns(toy_sizes: None) -> None:
    phase, trained = modules.Phase(2, 1), []

    class Kept(modules.Phase):
        def learners(self) -> dict[int, Chain]:
            trained.append(phase.learners())
            return trained[-1]

    for run in (Kept.fused, lambda p: Kept.published(p, True), lambda p: Kept.published(p, False)):
        run(Kept(2, 1))
    for other in trained[1:]:
        for i, chain in trained[0].items():
            for (name, p), q in zip(chain.named_parameters(), other[i].parameters(), strict=True):
                if not name.endswith("qkv.bias"):  # a third of it has no gradient but rounding, which AdamW enlarges
                    assert float((p - q).detach().abs().mean()) < 2e-5, name
        moved = (next(other[0].parameters()) - next(phase.learners()[0].parameters())).detach()
        assert float(moved.abs().mean()) > 5e-4


def test_unknown_subjects_are_named() -> None:
    done = CliRunner().invoke(app, ["bench", "warp"])
    assert done.exit_code != 0
    assert "warp" in str(done.exception)
    assert SUBJECTS.keys() == set(LISTED.split(", "))
