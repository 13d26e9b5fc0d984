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
from modnet.engine.batch import Batch
from modnet.engine.choices import Choice
from modnet.engine.compiling import compiled, forget_compiled
from modnet.engine.job import Job
from modnet.engine.muon import fastest_dtype

TRIES, LEAST_GAIN = 5, 1.1
LONG = 600.0  # seconds of passes from which on compiling is tried, as it takes a minute or more
TOO_LARGE = "a trial took more memory than there is"
PAYS = 2.0  # how many times as much as compiling takes it has to save


@dataclass(frozen=True)
class Trials:
    """The trials of a job on a device."""

    job: Job
    device: torch.device
    ranks: int = 1  # that share each batch

    def dtype(self) -> Choice:
        """See :func:`dtype_trial`."""
        return dtype_trial(self.job, self.device)

    def compile(self, bf16: bool) -> Choice:
        """See :func:`compile_trial`."""
        return compile_trial(self.job, self.device, bf16, self.ranks)


def dtype_trial(job: Job, device: torch.device) -> Choice:
    """bf16 where the device has it and a step forth and back is clearly faster with it, else fp32."""
    native, why = fastest_dtype(device)
    if native != torch.bfloat16:
        return Choice("fp32", why)
    try:
        with _unchanged(job):
            part = _part(job)
            full, half = (_seconds(_pass(job, job.objective, part, device, bf16)) for bf16 in (False, True))
    except torch.OutOfMemoryError:
        return Choice("fp32", TOO_LARGE)
    gain = full / half
    return Choice("bf16" if gain >= LEAST_GAIN else "fp32", f"a step with bf16 is {gain:.2f} times as fast; {why}")


def compile_trial(job: Job, device: torch.device, bf16: bool, ranks: int = 1) -> Choice:
    """Compiled where that saves clearly more over the whole job than it takes; not tried where the job is short.

    ``ranks``: how many share each batch, so that a pass takes that share of the time.
    """
    parallel = getattr(job.settings, "parallel", None)
    if parallel is not None and (parallel.fsdp != 1 or parallel.experts != 1):
        return Choice(False, "a network that may be divided over processes is not compiled")
    passes = job.settings.epochs * job.batches.steps_per_epoch * job.settings.accumulate
    if not passes:
        return Choice(False, "nothing is trained")
    try:
        with _unchanged(job):
            return _compile_trial(job, device, bf16, passes / ranks)
    except torch.OutOfMemoryError:
        return Choice(False, TOO_LARGE)


def _compile_trial(job: Job, device: torch.device, bf16: bool, passes: float) -> Choice:
    part = _part(job)
    eager = _seconds(_pass(job, job.objective, part, device, bf16))
    if passes * eager < LONG:
        return Choice(False, f"all passes take about {passes * eager:.0f} s, too short to pay for compiling")
    began = time.perf_counter()
    try:
        run = _pass(job, compiled(job.objective), part, device, bf16)
        run()
    except Exception as error:  # whatever the compiler, or the lack of one, raises
        forget_compiled()
        return Choice(False, f"compiling failed: {type(error).__name__}")
    took = time.perf_counter() - began
    quick = _seconds(run)
    saved = passes * (eager - quick)
    if not (pays := saved > PAYS * took):
        forget_compiled()
    told = f"{eager / quick:.2f} times as fast, {saved:.0f} s less over the job; compiling takes {took:.0f} s"
    return Choice(pays, told)


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


def _part(job: Job) -> Batch:
    """A micro-batch."""
    return next(job.batches.epoch(0)).split(job.settings.accumulate)[0]


def _seconds(run: Callable[[], None]) -> float:
    """The median time of a pass, after one to warm up."""
    found = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def _pass(job: Job, objective: nn.Module, part: Batch, device: torch.device, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        """Forth and back, until the device has done it."""
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = objective(part, Pass(job.key, part.ids, part.extra))
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
