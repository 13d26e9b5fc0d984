"""Learning rates by step. A builder gives ``step -> rate`` for one base rate; steps count optimizer steps from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

from modnet.recipe.training import EpochwiseCosine, Schedule

Rate = Callable[[int], float]
Shape = Callable[[float], float]


def warmup_steps(length: int | str, total_steps: int, steps_per_epoch: int) -> int:
    """A warm-up length (``100``, ``"10%"``, ``"2 epochs"``) in steps, at most all of them."""
    if isinstance(length, int):
        steps = length
    elif length.endswith("%"):
        steps = round(float(length[:-1]) / 100 * total_steps)
    else:
        steps = round(float(length.split("epoch")[0]) * steps_per_epoch)
    return min(steps, total_steps)


def _by_step(params: Schedule, total_steps: int, steps_per_epoch: int, base_lr: float, shape: Shape) -> Rate:
    """Warm-up, then ``shape`` (1 at progress 0, 0 at progress 1) between the base rate and the floor.

    The last warm-up step and the first step after it run at the full rate, so that no step is spent at rate zero when
    the warm-up starts from nothing.
    """
    warmup = warmup_steps(params.warmup, total_steps, steps_per_epoch)
    rest = max(1, total_steps - warmup)

    def rate(step: int) -> float:
        if step < warmup:
            return base_lr * (params.start + (1 - params.start) * (step + 1) / warmup)
        progress = min(1.0, (step - warmup) / rest)
        return base_lr * (params.floor + (1 - params.floor) * shape(progress))

    return rate


def cosine(params: Schedule, total_steps: int, steps_per_epoch: int, base_lr: float) -> Rate:
    """Half a cosine from the base rate to the floor (Loshchilov and Hutter 2017, without restarts)."""
    return _by_step(params, total_steps, steps_per_epoch, base_lr, lambda t: (1 + math.cos(math.pi * t)) / 2)


def linear(params: Schedule, total_steps: int, steps_per_epoch: int, base_lr: float) -> Rate:
    """A straight line from the base rate to the floor."""
    return _by_step(params, total_steps, steps_per_epoch, base_lr, lambda t: 1 - t)


def constant(params: Schedule, total_steps: int, steps_per_epoch: int, base_lr: float) -> Rate:
    """The base rate throughout, after the warm-up."""
    return _by_step(params, total_steps, steps_per_epoch, base_lr, lambda _: 1.0)


def epochwise_lr(epoch: int, lr: float, params: EpochwiseCosine, epochs: int) -> float:
    """The learning rate of a whole epoch as Deep Incubation's reference sets it (timm's CosineLRScheduler).

    The warm-up start and the floor are absolute rates, and the cosine is not shifted by the warm-up. With ``quirk_lag``
    epoch ``e`` uses ``t = max(e - 1, 0)``: the reference steps its scheduler with the index of the epoch that has just
    ended. Source: LeapLabTHU/Deep-Incubation, ``main.py`` and ``timm/scheduler/cosine_lr.py``.
    """
    t = max(epoch - 1, 0) if params.quirk_lag else epoch
    if t < params.warmup_epochs:
        return params.warmup_lr + t * (lr - params.warmup_lr) / params.warmup_epochs
    return params.min_lr + (lr - params.min_lr) * (1 + math.cos(math.pi * min(t, epochs) / epochs)) / 2


def cosine_epochwise(params: EpochwiseCosine, total_steps: int, steps_per_epoch: int, base_lr: float) -> Rate:
    """:func:`epochwise_lr` by step: constant within an epoch."""
    epochs = max(1, total_steps // steps_per_epoch)
    return lambda step: epochwise_lr(step // steps_per_epoch, base_lr, params, epochs)
