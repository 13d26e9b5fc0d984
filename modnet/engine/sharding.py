"""Whether and over how many ranks of a team a job's networks are divided, by the recipe's ``parallel``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from modnet.engine.job import Job
from modnet.engine.parallel import spread, unsynced
from modnet.engine.ranks import Team
from modnet.errors import RequestError
from modnet.recipe.stages import Parallel


@dataclass(frozen=True)
class Degrees:
    """Over how many ranks each thing is divided; 1: it is not."""

    fsdp: int
    experts: int

    @classmethod
    def of(cls, parallel: Parallel | None, ranks: int) -> Degrees:
        """What a recipe asks for, for so many ranks; raises RequestError where they do not divide."""
        if parallel is None or ranks == 1:
            return cls(1, 1)
        fsdp, experts = (ranks if degree == "all" else degree for degree in (parallel.fsdp, parallel.experts))
        for name, degree in (("fsdp", fsdp), ("experts", experts)):
            if ranks % degree:
                raise RequestError(f"parallel.{name}: {ranks} processes do not divide into groups of {degree}")
        if parallel.data is not None and parallel.data * fsdp != ranks:
            raise RequestError(
                f"parallel: {parallel.data} (data) times {fsdp} (fsdp) is not the number of processes, {ranks}; "
                "leave data out to have it follow"
            )
        return cls(fsdp, experts)


class Sharding:
    """What a job does whose networks every rank has whole; batches alone are shared."""

    divides = False  # whether all ranks must take part in every pass

    def __init__(self, team: Team) -> None:
        self.team, self.told = team, list[str]()

    def spread(self, objective: nn.Module) -> nn.Module:
        """The objective, gradients averaged over the ranks after backward."""
        return spread(objective, self.team)

    def unsynced(self, objective: nn.Module, wanted: bool) -> AbstractContextManager[None]:
        """For all micro-batches but the last: gradients are summed here and exchanged once."""
        return unsynced(objective, wanted)

    def average(self) -> None:
        """After backward: average what :meth:`spread` does not."""

    def restore(self) -> None:
        """Make the chains what they were, in one piece, with the weights that they have now; all ranks take part."""


def shard(job: Job, team: Team, device: torch.device) -> Sharding:
    """Divide a job's networks as its recipe asks; raises RequestError where that is not possible."""
    degrees = Degrees.of(getattr(job.settings, "parallel", None), team.size)
    if degrees == Degrees(1, 1):
        return Sharding(team)
    from modnet.engine.sharded import Sharded  # half a second to import

    return Sharded(job, degrees, team, device)
