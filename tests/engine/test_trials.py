"""``dtype: auto`` is settled by a short trial that leaves nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modnet.engine import trials
from modnet.engine.trials import dtype_trial
from tests.engine.toy import run, toy_job, weights

CPU = torch.device("cpu")


def test_without_native_bf16_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "fastest_dtype", lambda device: (torch.float32, "the CPU has no bf16 instructions"))
    assert dtype_trial(toy_job(), CPU).value == "fp32"


@pytest.mark.parametrize(("slow", "chosen"), [(False, "fp32"), (True, "bf16")])
def test_what_is_faster_is_chosen_stored_and_told(
    slow: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(trials, "fastest_dtype", lambda device: (torch.bfloat16, "the CPU has it"))
    ticks = [0.0]

    def counter() -> float:
        # Each try reads the clock twice: the first six tries are those of fp32.
        turn = next(clock)
        ticks[0] += (3.0 if turn < 12 else 1.0) if slow else (1.0 if turn < 12 else 3.0)
        return ticks[0]

    monkeypatch.setattr("modnet.engine.trials.time.perf_counter", counter)
    job = toy_job()
    before = {name: tensor.clone() for name, tensor in weights(job).items()}
    choice = dtype_trial(job, CPU)
    monkeypatch.undo()
    assert choice.value == chosen
    assert "times as fast; the CPU has it" in choice.reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(job).items())
    assert all(p.grad is None for p in job.objective.parameters())


def test_the_trial_decides_once_for_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modnet.engine.choices import Choice

    made = Choice("bf16", "a step with bf16 is 2.00 times as fast; it says")
    monkeypatch.setattr("modnet.engine.trainer.dtype_trial", lambda job, device: made)
    run(tmp_path / "a", dtype="auto", epochs=1)
    assert json.loads((tmp_path / "a" / "choices.json").read_text())["dtype"]["value"] == "bf16"
    monkeypatch.setattr("modnet.engine.trainer.dtype_trial", lambda job, device: 1 / 0)
    run(tmp_path / "a", dtype="auto", epochs=1)
