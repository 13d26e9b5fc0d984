"""How many modules are trained at once, and whether they pass the frozen modules behind them in one batch.

Both are chosen once, stored with the stage's other choices and obeyed when it is resumed. Neither changes a result:
every module's loss, gradient and random draws are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Protocol

import torch
from torch import Tensor, nn

from modnet.engine.batch import Batch
from modnet.engine.choices import Choice
from modnet.engine.ranks import dealt
from modnet.layers.moe import MoE

SHARE = 0.5  # of the memory that is free: validation, optimizers and other processes need some as well
SAMPLES = 2  # in the pass by which memory is estimated
TRIES = 3


class Fusible(Protocol):
    """What a trial needs of an objective of several modules."""

    joined: bool
    behind: nn.ModuleDict

    def eval(self) -> object:
        """Put it into evaluation mode."""
        ...

    def given(self, batch: Batch) -> Mapping[int, Tensor]:
        """What each module gives for a batch."""
        ...

    def through(self, given: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """What that becomes at the end of the frozen tail."""
        ...


def group_name(places: list[int], count: int) -> str:
    """The job's name: ``modules`` for all, ``module2`` for one, ``modules0-2`` for a row, else ``modules0.3``."""
    if len(places) == count and count > 1:
        return "modules"
    if len(places) == 1:
        return f"module{places[0]}"
    row = places == list(range(places[0], places[-1] + 1))
    return f"modules{places[0]}-{places[-1]}" if row else f"modules{'.'.join(map(str, places))}"


def in_rows(count: int, width: int) -> list[list[int]]:
    """Places 0 … count - 1 in groups of at most ``width``, in order."""
    return [list(range(start, min(start + width, count))) for start in range(0, count, width)]


def grouping(costs: Sequence[float], fitting: Choice, ranks: int) -> Choice:
    """The places of each group, for so many processes and where so many modules fit at once."""
    width = int(fitting.value)
    if ranks == 1:
        return Choice(in_rows(len(costs), width), fitting.reason)
    hands = [jobs for jobs, _ in dealt(costs, min(ranks, len(costs)))]
    groups = [[hand[i] for i in row] for hand in hands for row in in_rows(len(hand), width)]
    return Choice(groups, f"dealt to {ranks} processes by cost; {fitting.reason}")


def width_that_fits(count: int, one: int, free: int | None) -> Choice:
    """How many of ``count`` modules, each keeping ``one`` bytes for its backward pass, fit into ``free`` bytes."""
    if free is None:
        return Choice(count, "all; how much memory is free is not known here")
    fits = max(1, min(count, int(free * SHARE) // max(one, 1)))
    told = f"a module keeps about {one / 2**20:.0f} MiB for its backward pass, {free / 2**20:.0f} MiB are free"
    return Choice(fits, told)


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process may still take; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":") for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def saved_bytes(run: Callable[[Batch], object], batch: Batch) -> int:
    """Bytes that ``run`` keeps for its backward pass for each sample of a batch, estimated from its first samples."""
    few = batch.split(max(1, len(batch) // SAMPLES))[0]
    few = replace(few, x=few.x.clone())  # a view would count as the whole batch
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = run(few)  # noqa: F841 - alive, so that no storage is counted under another's address
    return sum(kept.values()) // len(few)


def joining(objective: Fusible, batch: Batch, dtype: torch.dtype | None = None) -> Choice:
    """Whether the tail is passed in one batch: only where that gives the same bits, and in less time."""
    objective.eval()  # no running statistics are to move; a step puts it into training
    if any(isinstance(part, MoE) for part in objective.behind.modules()):
        return Choice(False, "experts are chosen for a whole batch, which is not to be joined with another")
    with torch.no_grad(), _autocast(batch.x.device, dtype):
        given = {i: x for i, x in objective.given(batch).items() if str(i + 1) in objective.behind}
    if len(given) < 2 or not all(isinstance(x, Tensor) for x in given.values()):
        return Choice(False, "there are no two modules that pass the same tail")
    if not _meet(objective, given):
        return Choice(False, "modules give features of different shapes")
    apart, together = (_passed(objective, given, joined, dtype) for joined in (False, True))
    if not all(torch.equal(a, b) for a, b in zip(apart, together, strict=True)):
        return Choice(False, "in one batch the last bits differ on this machine")
    seconds = {joined: _timed(objective, given, joined, dtype) for joined in (False, True)}
    ratio = seconds[False] / seconds[True]
    return Choice(ratio > 1, f"in one batch {ratio:.2f} times as fast, same bits")


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@torch.no_grad()
def _meet(objective: Fusible, given: Mapping[int, Tensor]) -> bool:
    """Whether, in every joint of the tail, what comes from modules in front has the shape of what joins it there."""
    passing = given[min(given)][:1]
    for i in range(min(given) + 1, max(given) + 1):
        passing = objective.behind[str(i)](passing)
        if i in given and given[i].shape[1:] != passing.shape[1:]:
            return False
    return True


def _passed(objective: Fusible, given: Mapping[int, Tensor], joined: bool, dtype: torch.dtype | None) -> list[Tensor]:
    """Ends of the tail and gradients at its beginnings."""
    objective.joined = joined
    starts = {i: x.detach().requires_grad_() for i, x in given.items()}
    device = next(iter(given.values())).device
    with torch.enable_grad(), _autocast(device, dtype):
        ends = list(objective.through(starts).values())
    total = torch.stack([end.float().square().sum() for end in ends]).sum()
    return [*ends, *torch.autograd.grad(total, list(starts.values()))]


def _timed(objective: Fusible, given: Mapping[int, Tensor], joined: bool, dtype: torch.dtype | None) -> float:
    """Median seconds of a pass forth and back."""
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        passed = _passed(objective, given, joined, dtype)
        if passed[0].is_cuda:
            torch.cuda.synchronize(passed[0].device)
        found.append(time.perf_counter() - start)
    return median(found)


def trial_batch(images: Tensor, rows: int, classes: int) -> Batch:
    """A batch of ``rows`` samples made of normalised images, repeated as often as needed."""
    x = images[torch.arange(rows, device=images.device) % len(images)]
    ids = torch.arange(rows, device=images.device)
    return Batch(x, ids % classes, ids)
