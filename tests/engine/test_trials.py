"""``dtype: auto`` and ``compile: auto`` are settled by short trials that leave nothing changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from modnet.engine import trials
from modnet.engine.batch import Batch
from modnet.engine.job import Job
from modnet.engine.trials import compile_trial, dtype_trial
from modnet.recipe.stages import Train
from modnet.recipe.training import SGD
from tests.engine import toy
from tests.engine.test_statistics import normed_chain
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
    monkeypatch.setattr("modnet.engine.trials.dtype_trial", lambda job, device: made)
    run(tmp_path / "a", dtype="auto", epochs=1)
    assert json.loads((tmp_path / "a" / "choices.json").read_text())["dtype"]["value"] == "bf16"
    monkeypatch.setattr("modnet.engine.trials.dtype_trial", lambda job, device: 1 / 0)
    run(tmp_path / "a", dtype="auto", epochs=1)


class Clock:
    """Every pass takes ``eager`` seconds, and ``quick`` once the compiler has been at it, which takes ``compiling``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, eager: float, quick: float, compiling: float) -> None:
        self.now, self.each, self.compiled = 0.0, eager, 0
        real = trials._pass

        def timed(job: Job, objective: nn.Module, part: Batch, device: torch.device, bf16: bool) -> Callable[[], None]:
            run = real(job, objective, part, device, bf16)

            def ticking() -> None:
                run()
                self.now += self.each

            return ticking

        def compiled(objective: nn.Module) -> nn.Module:
            self.now += compiling
            self.each, self.compiled = quick, self.compiled + 1
            return objective

        monkeypatch.setattr(trials, "_pass", timed)
        monkeypatch.setattr(trials, "compiled", compiled)
        monkeypatch.setattr(trials, "forget_compiled", lambda: None)
        monkeypatch.setattr("modnet.engine.trials.time.perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("eager", "quick", "compiling", "value", "told"),
    [
        (1.0, 0.5, 5.0, False, "too short to pay for compiling"),
        (200.0, 100.0, 200.0, True, "2.00 times as fast, 800 s less over the job; compiling takes 300 s"),
        (200.0, 190.0, 300.0, False, "1.05 times as fast, 80 s less"),
    ],
)
def test_compiling_is_chosen_where_it_saves_more_than_it_takes(
    eager: float, quick: float, compiling: float, value: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = toy_job(epochs=2, compile="auto")
    before = {name: tensor.clone() for name, tensor in weights(job).items()}
    clock = Clock(monkeypatch, eager, quick, compiling)
    choice = compile_trial(job, CPU, bf16=False)
    monkeypatch.undo()
    assert choice.value is value
    assert told in choice.reason
    assert clock.compiled == (eager > 100)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(job).items())
    assert all(p.grad is None for p in job.objective.parameters())


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(objective: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(trials, "LONG", 0.0)
    monkeypatch.setattr(trials, "compiled", missing)
    monkeypatch.setattr(trials, "forget_compiled", lambda: None)  # it would import the compiler
    run(tmp_path, compile="auto", epochs=1)
    stored = json.loads((tmp_path / "choices.json").read_text())["compile"]
    assert stored == {"value": False, "reason": "compiling failed: RuntimeError"}


def test_ranks_that_share_batches_have_less_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    job = toy_job(epochs=2, compile="auto")
    Clock(monkeypatch, eager=200.0, quick=100.0, compiling=200.0)
    assert compile_trial(job, CPU, bf16=False, ranks=2).value is False


@pytest.mark.parametrize(("parallel", "tried"), [({}, True), ({"fsdp": "all"}, False), ({"experts": 2}, False)])
def test_a_network_that_may_be_divided_is_not_compiled(
    parallel: dict[str, object], tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = toy_job()
    values = {"data": "d", "model": "m", "compile": "auto", "parallel": parallel}
    settings = Train.model_validate_json(json.dumps(values), strict=True)
    Clock(monkeypatch, eager=1.0, quick=0.5, compiling=1.0)
    choice = compile_trial(replace(job, settings=settings), CPU, bf16=False)
    assert ("too short" in choice.reason) == tried
    assert ("may be divided" in choice.reason) != tried


def test_nothing_is_tried_where_nothing_is_trained() -> None:
    assert compile_trial(toy_job(epochs=0, compile="auto"), CPU, bf16=False).reason == "nothing is trained"


def test_running_statistics_and_the_mode_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "toy_chain", normed_chain)
    job = toy_job(compile="auto")
    before = {name: buffer.clone() for name, buffer in job.objective.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    for mode in (True, False):
        job.objective.train(mode)
        compile_trial(job, CPU, bf16=False)
        assert job.objective.training is mode
        for name, buffer in job.objective.named_buffers():
            assert torch.equal(buffer, before[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_trial_compiled_is_trained_and_obeyed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "LONG", 0.0)
    monkeypatch.setattr(trials, "PAYS", -math.inf)
    eager, _ = run(tmp_path / "eager", optimizer=SGD(lr=0.1))
    fast, _ = run(tmp_path / "fast", optimizer=SGD(lr=0.1), compile="auto")
    assert json.loads((tmp_path / "fast" / "choices.json").read_text())["compile"]["value"] is True
    for name, tensor in weights(eager).items():
        torch.testing.assert_close(weights(fast)[name], tensor, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("modnet.engine.trials.compile_trial", lambda *_: pytest.fail("tried again"))
    run(tmp_path / "fast", optimizer=SGD(lr=0.1), compile="auto")
