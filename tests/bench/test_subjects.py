"""Subjects run at a small size, are saved, and compare like with like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from typer.testing import CliRunner

from modnet.bench import arithmetic, loading, modules, scaling, script, startup, steps, sweeps, teachers
from modnet.bench.networks import random_data
from modnet.bench.pairs import Comparison, Finding, Measure, Skipped, faster
from modnet.bench.subjects import SUBJECTS
from modnet.chain import Chain
from modnet.cli.bench import SLOW, moved, subjects_of
from modnet.cli.bench import SUBJECTS as LISTED
from modnet.cli.main import app
from modnet.data.loaders import TrainBatches
from modnet.randomness import Key


@pytest.fixture
def toy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which every subject runs in a moment."""
    for module in (modules, steps, teachers, loading, script):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (modules, steps, teachers, loading):
        monkeypatch.setattr(module, "STEPS", 2)
    for module in (loading, script):  # without workers: they take seconds to start
        monkeypatch.setattr(module, "WORKERS", 0)
    monkeypatch.setattr(steps, "CHECKPOINT_STEPS", 3)
    monkeypatch.setattr(modules, "CASES", (modules.Case(2, 1, faster(1.15), faster(1.7), steps=2),))
    monkeypatch.setattr(modules.Phase.__init__, "__defaults__", (2,))
    for name, value in (("COUNT", 2), ("BLOCKS", 1), ("STEPS", 2), ("SEEDS", range(2)), ("WIDTHS", (32,))):
        monkeypatch.setattr(sweeps, name, value)
    for name, small in (("BATCH", 2), ("STEPS", 3), ("BLOCKS", 1), ("WIDTHS", {64: faster(2.3)}), ("TRIES", 1)):
        monkeypatch.setattr(arithmetic, name, small)
    monkeypatch.setattr(arithmetic, "SIZE", {"width": 64, "blocks": 1})
    monkeypatch.setattr(arithmetic, "bf16_missing", lambda: None)


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("loader", ["loader", "loader, 2 workers"]),
        ("step", ["step", "step, epoch with augmentation"]),
        ("checkpoint", ["checkpoint"]),
        ("modules", ["modules fused, K = 2", "modules fused, frozen tail, K = 2", "modules replayed, K = 2"]),
        ("teacher-cache", [f"teacher-cache {what}" for what in ("fp32", "fp16", "top-k", "first student")]),
        ("sweep", ["sweep"]),
        ("bf16", ["bf16, width 64", "dtype auto, width 64"]),
        ("efficiency", ["efficiency fp32", "efficiency bf16"]),
    ],
)
def test_a_subject_runs_and_is_saved(toy_sizes: None, subject: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["bench", subject, "--repeats", "1", "--save", str(path)])
    assert done.exit_code == 0, done.output
    assert "baseline" in done.output
    saved = json.loads(path.read_text())["comparisons"]
    assert [entry["name"].partition(", teacher")[0] for entry in saved] == names
    for entry in saved:
        assert (entry["reached"] is None) == (entry["aim"] is None)


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


def test_figures_are_not_compared_with_another_file(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[1]")
    assert "no figures of modnet bench" in " ".join(
        str(CliRunner().invoke(app, ["bench", "startup", "--compare", str(other)]).exception).split()
    )


def test_the_published_phase_learns_what_the_fused_one_learns(toy_sizes: None) -> None:
    phase, trained = modules.Phase(2, 1), []

    class Kept(modules.Phase):
        def learners(self, student: modules.Student = modules.STUDENT) -> dict[int, Chain]:
            trained.append(phase.learners(student))
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


def test_timms_script_is_run_beside_the_trainer(toy_sizes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "fashion_mnist", lambda: random_data(12))
    monkeypatch.setattr(script, "EPOCHS", 2)
    epoch, accuracy = script.timm_script(1)
    assert isinstance(epoch, Comparison)
    assert isinstance(accuracy, Comparison)
    assert len(epoch.seconds) == len(epoch.baseline_seconds) == 1
    assert accuracy.note.startswith("on test ")
    assert accuracy.baseline_seconds[0] > epoch.baseline_seconds[0]


def test_timms_script_sees_the_same_images(toy_sizes: None) -> None:
    """Without augmentation its loader gives our normalised images, and training lowers its loss."""
    dataset = random_data(8)
    loader = script.timm_loader(dataset)
    loader.dataset.transform.transforms = loader.dataset.transform.transforms[-1:]
    own = dataset.normalise(dataset.train.images)
    for x, y in loader:
        row = int((own - x[0]).abs().flatten(1).amax(1).argmin())
        torch.testing.assert_close(x[0], own[row])
        assert y[0] == dataset.train.labels[row]


def test_what_is_not_here_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (script, startup):
        monkeypatch.setattr(module, "fashion_mnist", lambda: None)
    assert script.timm_script(1) == [Skipped("timm-script", "Fashion-MNIST is not here")]
    assert startup.memory(1) == [Skipped("memory", "Fashion-MNIST is not here")]


def test_bf16_is_left_out_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "bf16_missing", lambda: "none here")
    assert arithmetic.bf16(1) == [Skipped("bf16", "none here")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it there")
def test_peak_memory_is_that_of_the_process() -> None:
    held = b"x" * 300_000_000  # of this process, which is not to count
    assert 10e6 < startup.peak_bytes(["--version"]) < len(held)
    with pytest.raises(CalledProcessError):
        startup.peak_bytes(["show", "no-such-recipe"])


def test_startup_has_limits_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "python", lambda *words: lambda: None)
    assert [found.aim and found.aim.text for found in startup.startup(1) if isinstance(found, Comparison)] == [
        "≤ 150 ms",
        "≤ 300 ms",
    ]


def test_each_step_is_clocked_by_itself() -> None:
    batches, between = TrainBatches(random_data(12), 4, Key.of(0)), []
    clocked = arithmetic.Clocked(batches, lambda: between.append(0))
    assert len(list(clocked.epoch(0))) == 3
    assert len(clocked.seconds) == len(between) == 3


def test_efficiency_is_a_share_of_what_products_reach(toy_sizes: None) -> None:
    for found in arithmetic.efficiency(1):
        assert isinstance(found, Measure)
        assert found.figure > 0
        assert found.note.startswith("products alone ")
        assert re.search(r"; a profile: products \d+ %, attention \d+ %, GELU \d+ %,", found.note)


def test_one_process_saves_the_frozen_front_that_two_compute_each(toy_sizes: None) -> None:
    assert 1.5 < scaling.by_flops() < 2


@pytest.mark.slow
def test_two_processes_are_timed_together() -> None:
    with scaling.Crew(1) as one, scaling.Crew(2) as two:
        times = [one.timed("data 48"), two.timed("data 48"), two.timed("halves 48")]
    assert min(times) > 0


def test_unknown_subjects_are_named() -> None:
    done = CliRunner().invoke(app, ["bench", "warp"])
    assert done.exit_code != 0
    assert "warp" in str(done.exception)
    assert [*SUBJECTS] == [*LISTED]


def test_all_is_everything_but_what_is_slow() -> None:
    usual = [name for name in LISTED if name not in SLOW]
    assert subjects_of(["all"]) == usual
    assert subjects_of(["moe", "all", "memory"]) == ["moe", *(n for n in usual if n != "moe"), "memory"]
    assert subjects_of(["moe"]) == ["moe"]


def test_one_subject_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(repeats: int) -> list[Finding]:
        raise ValueError("no luck")

    done_well = Measure("efficiency fp32", "arithmetic", "of the GEMM rate", (0.5,))
    monkeypatch.setitem(SUBJECTS, "moe", broken)
    monkeypatch.setitem(SUBJECTS, "efficiency", lambda repeats: [done_well])
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["bench", "moe", "efficiency", "--save", str(path)])
    assert "not measured: moe" in str(done.exception)
    assert "failed, ValueError: no luck" in done.output
    assert "0.5" in done.output
    assert [entry["name"] for entry in json.loads(path.read_text())["comparisons"]] == ["moe", "efficiency fp32"]


def test_another_machine_is_told_apart() -> None:
    before, now = {"cpu": "A", "torch": "2", "load": 1.0}, {"cpu": "B", "torch": "2", "load": 0.0}
    assert moved(before, now) == ["not the same machine or versions: cpu A then, B now"]
    assert moved(now, now) == []
