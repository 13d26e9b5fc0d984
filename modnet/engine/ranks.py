"""Several processes at one experiment: who computes what, and the little that they tell each other.

A stage's jobs are dealt to **teams** of ranks. Teams never talk to each other while they train: modules learn apart.
The ranks of a team share each batch (data parallel). One process is a world of one rank, whose exchanges do nothing.
"""

from __future__ import annotations

import atexit
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # a rank waits this long for others, which may be at a longer job


@dataclass(frozen=True)
class Team:
    """Ranks that share one job; ``rank`` counts within the team.

    ``group`` carries gradients, ``talk`` (gloo) numbers that are on the CPU, so that no GPU is waited for.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    talk: dist.ProcessGroup | None = None
    first: int = 0  # the world's number of the leader

    @property
    def leads(self) -> bool:
        """Whether this rank writes and reports for its team."""
        return self.rank == 0

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over the ranks."""
        return self.largest_soon(lambda: values)()

    def largest_soon(self, values: Callable[[], Sequence[int]]) -> Callable[[], list[int]]:
        """As :meth:`largest`, but told by what is returned, so that the ranks need not wait for each other at once.

        A rank that is alone asks for its values only then.
        """
        if self.size == 1:
            return lambda: list(values())
        tensor = torch.tensor(values(), dtype=torch.int64)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.talk, async_op=True)

        def told() -> list[int]:
            work.wait()
            return [int(value) for value in tensor.tolist()]

        return told

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the tensor's device; the tensor itself is left as it is."""
        if self.size == 1:
            return tensor
        total = tensor.detach().cpu().clone()
        dist.all_reduce(total, group=self.talk)
        return total.to(tensor.device)

    def gathered(self, value: T) -> list[T]:
        """The value of every rank, in order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.talk)
        return found

    def told(self, value: T) -> T:
        """The leader's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.first, group=self.talk)
        return box[0]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.talk)

    def beside(self, folder: Path) -> tuple[int, int]:
        """The place of this rank among those that see the same folder, and how many these are.

        Machines may each have a disk of their own at a path.
        """
        if self.size == 1:
            return 0, 1
        token = self.told(secrets.token_hex(8))
        mark = folder / f".{token}-{self.rank}"
        mark.touch()
        self.wait()
        seen = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob(f".{token}-*"))
        self.wait()
        mark.unlink()
        return seen.index(self.rank), len(seen)

    def slice_of(self, count: int) -> slice:
        """The share of ``count`` rows that is this rank's: consecutive, near-equal, the first ranks one more."""
        share, more = divmod(count, self.size)
        start = self.rank * share + min(self.rank, more)
        return slice(start, start + share + (self.rank < more))


SOLO = Team()
_sharing: ContextVar[Team] = ContextVar("sharing", default=SOLO)


def sharing_team() -> Team:
    """The team whose ranks are all measuring the same thing now, and may divide it; else a team of one."""
    return _sharing.get()


@contextmanager
def sharing(team: Team) -> Iterator[None]:
    """In the body all ranks of a team measure the same, in the same order."""
    token = _sharing.set(team)
    try:
        yield
    finally:
        _sharing.reset(token)


@dataclass(frozen=True)
class Dealt:
    """Which jobs this rank does, one after another, and the team that it does them with."""

    jobs: list[int]
    team: Team


def dealt(costs: Sequence[float], ranks: int) -> list[tuple[list[int], list[int]]]:
    """Jobs and ranks of each team, ``[(jobs, ranks), …]``; together they hold every job and every rank once.

    At least as many jobs as ranks: a team is one rank, jobs are given in rounds, the costliest first to who has least.
    Fewer jobs: each has a team, and the ranks left over join those whose share is largest.
    """
    order = sorted(range(len(costs)), key=lambda job: (-costs[job], job))
    if len(costs) >= ranks:
        hands: list[list[int]] = [[] for _ in range(ranks)]
        for job in order:
            load = [sum(costs[j] for j in hand) for hand in hands]
            hands[min(range(ranks), key=lambda rank: (load[rank], len(hands[rank]), rank))].append(job)
        return [(sorted(hand), [rank]) for rank, hand in enumerate(hands)]
    sizes = [1] * len(costs)
    for _ in range(ranks - len(costs)):
        sizes[max(range(len(costs)), key=lambda job: (costs[job] / sizes[job], -job))] += 1
    starts = [sum(sizes[:job]) for job in range(len(costs))]
    return [([job], list(range(starts[job], starts[job] + sizes[job]))) for job in range(len(costs))]


class World:
    """All processes of a run."""

    def __init__(self, team: Team, backend: str = "") -> None:
        self.team, self.backend = team, backend

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.team.size

    def deal(self, costs: Sequence[float]) -> Dealt:
        """The jobs and the team of this rank; every rank calls it with the same costs."""
        if self.size == 1:
            return Dealt(list(range(len(costs))), SOLO)
        mine: Dealt | None = None
        for jobs, ranks in dealt(costs, self.size):
            alone = len(ranks) == 1
            # Every rank takes part in making every group, or the others wait for it.
            group = None if alone else _group(ranks)
            talk = group if alone or self.backend == "gloo" else _group(ranks, "gloo")
            if self.team.rank in ranks:
                mine = Dealt(jobs, Team(ranks.index(self.team.rank), len(ranks), group, talk, ranks[0]))
        assert mine is not None
        return mine

    def describe(self) -> str:
        """What the user is told."""
        why = "every process has a GPU" if self.backend == "nccl" else "on the CPU"
        return f"{self.size} processes, {self.backend} ({why})"


def _group(ranks: list[int] | None = None, backend: str | None = None) -> dist.ProcessGroup | None:
    """A group of some ranks, None for those that are not in it."""
    made = dist.new_group(ranks, timeout=PATIENCE, backend=backend)
    return made if isinstance(made, dist.ProcessGroup) else None


ALONE = World(SOLO)


def processes() -> int:
    """How many processes torchrun started, by its environment; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def other_process() -> bool:
    """Whether this is one of several processes, but not the first, so that it prints nothing."""
    return int(os.environ.get("RANK", "0")) > 0 and processes() > 1


def local_device(name: str | None) -> str | None:
    """The device of this process where each has its own: ``cuda`` becomes ``cuda:<local rank>``."""
    if processes() == 1 or name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def join(device: torch.device) -> World:
    """Meet the other processes that torchrun started, if there are any; nccl where each has a GPU, else gloo."""
    if processes() == 1:
        return ALONE
    enough = device.type == "cuda" and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = "nccl" if enough and dist.is_nccl_available() else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE)
        if backend == "nccl":  # which complains at the end of a process otherwise
            atexit.register(dist.destroy_process_group)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    talk = dist.group.WORLD if backend == "gloo" else _group(backend="gloo")
    return World(Team(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, talk), backend)
