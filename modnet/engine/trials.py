"""Short measured trials behind automatic choices; no weight, statistic or gradient is left changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from modnet.chain import Pass
from modnet.engine.choices import Choice
from modnet.engine.compiling import compiled
from modnet.engine.job import Job
from modnet.engine.muon import fastest_dtype

TRIES, LEAST_GAIN = 5, 1.1
LONG = 600.0  # seconds of passes from which on compiling is tried, as it takes a minute or more
PAYS = 2.0  # how many times as much as compiling takes it has to save


@dataclass(frozen=True)
class Trials:
    """The trials of a job on a device."""

    job: Job
    device: torch.device

    def dtype(self) -> Choice:
        """See :func:`dtype_trial`."""
        return dtype_trial(self.job, self.device)

    def compile(self, bf16: bool) -> Choice:
        """See :func:`compile_trial`."""
        return compile_trial(self.job, self.device, bf16)


def dtype_trial(job: Job, device: torch.device) -> Choice:
    """bf16 where the device has it and a step forth and back is clearly faster with it, else fp32."""
    native, why = fastest_dtype(device)
    if native != torch.bfloat16:
        return Choice("fp32", why)
    with _unchanged(job):
        full, half = (_seconds(job, job.objective, device, bf16) for bf16 in (False, True))
    gain = full / half
    return Choice("bf16" if gain >= LEAST_GAIN else "fp32", f"a step with bf16 is {gain:.2f} times as fast; {why}")


def compile_trial(job: Job, device: torch.device, bf16: bool) -> Choice:
    """Compiled where that saves clearly more over the whole stage than it takes; not tried where the stage is short."""
    if getattr(job.settings, "parallel", None) is not None:
        return Choice(False, "a network that may be divided over processes is not compiled")
    passes = job.settings.epochs * job.batches.steps_per_epoch * job.settings.accumulate
    with _unchanged(job):
        eager = _seconds(job, job.objective, device, bf16)
        if passes * eager < LONG:
            return Choice(False, f"all passes take about {passes * eager:.0f} s, too short to pay for compiling")
        began = time.perf_counter()
        try:
            fast = compiled(job.objective)
            _pass(job, fast, device, bf16)()
        except Exception as error:  # whatever the compiler, or the lack of one, raises
            return Choice(False, f"compiling failed: {type(error).__name__}")
        took = time.perf_counter() - began
        quick = _seconds(job, fast, device, bf16)
    saved = passes * (eager - quick)
    told = f"{eager / quick:.2f} times as fast, {saved:.0f} s less over the stage; compiling takes {took:.0f} s"
    return Choice(saved > PAYS * took, told)


@contextmanager
def _unchanged(job: Job) -> Iterator[None]:
    """In the body the objective trains; afterwards its statistics are what they were, and there are no gradients."""
    mode, held = job.objective.training, [buffer.clone() for buffer in job.objective.buffers()]
    job.objective.train()
    try:
        yield
    finally:
        job.objective.train(mode)
        for buffer, before in zip(job.objective.buffers(), held, strict=True):
            buffer.copy_(before)
        for track in job.tracks:
            track.chain.zero_grad(set_to_none=True)


def _seconds(job: Job, objective: nn.Module, device: torch.device, bf16: bool) -> float:
    """The median time of a forward and backward pass of a micro-batch, after one to warm up."""
    run, found = _pass(job, objective, device, bf16), []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def _pass(job: Job, objective: nn.Module, device: torch.device, bf16: bool) -> Callable[[], None]:
    part = next(job.batches.epoch(0)).split(job.settings.accumulate)[0]

    def run() -> None:
        """Forth and back, until the device has done it."""
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = objective(part, Pass(job.key, part.ids, part.extra))
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
