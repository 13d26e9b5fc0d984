"""Short measured trials behind automatic choices."""

from __future__ import annotations

import time
from statistics import median

import torch

from modnet.chain import Pass
from modnet.engine.choices import Choice
from modnet.engine.job import Job
from modnet.engine.muon import fastest_dtype

TRIES, LEAST_GAIN = 5, 1.1


def dtype_trial(job: Job, device: torch.device) -> Choice:
    """bf16 where the device has it and a step forth and back is clearly faster with it, else fp32.

    No weight, statistic or gradient is left changed.
    """
    native, why = fastest_dtype(device)
    if native != torch.bfloat16:
        return Choice("fp32", why)
    job.objective.eval()  # running statistics are not to move
    part = next(job.batches.epoch(0)).split(job.settings.accumulate)[0]

    def seconds(bf16: bool) -> float:
        """The median time of a forward and backward pass, after one to warm up."""
        found = []
        for _ in range(TRIES + 1):
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                losses = job.objective(part, Pass(job.key, part.ids, part.extra))
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(time.perf_counter() - start)
        return median(found[1:])

    gain = seconds(False) / seconds(True)
    for track in job.tracks:
        track.chain.zero_grad(set_to_none=True)
    return Choice("bf16" if gain >= LEAST_GAIN else "fp32", f"a step with bf16 is {gain:.2f} times as fast; {why}")
