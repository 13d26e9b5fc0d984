"""An objective whose batches are shared by the ranks of a team: gradients are averaged by DistributedDataParallel."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modnet.engine.batch import Batch, Batches
from modnet.engine.ranks import Team
from modnet.errors import RequestError


def spread(objective: nn.Module, team: Team, apart: Collection[str] = ()) -> nn.Module:
    """The objective for a rank of the team: same parameters, gradients averaged over the ranks after backward.

    ``apart``: names of parameters that each rank has for itself.
    """
    if team.size == 1:
        return objective
    if apart:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, list(apart))
    # Running statistics (BatchNorm) are those of the leader's share, as DistributedDataParallel has it.
    running = any(buffer.is_floating_point() for buffer in objective.buffers())
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    option: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": running}
    return DistributedDataParallel(objective, process_group=team.group, gradient_as_bucket_view=True, **option)


@runtime_checkable
class Shareable(Protocol):
    """Batches of which some rows can be made without the others."""

    def shared(self, rows: slice) -> Batches:
        """The same batches, of which only these rows are given."""
        ...


class Sliced:
    """The rows of batches that can only be made whole."""

    def __init__(self, batches: Batches, rows: slice) -> None:
        self.batches, self._rows = batches, rows
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        return (batch.rows(self._rows) for batch in self.batches.epoch(epoch, start))


def share_of(batches: Batches, team: Team) -> Batches:
    """Each batch's rows that are this rank's; raises RequestError if there are more ranks than images in a batch."""
    if team.size == 1:
        return batches
    if batches.batch_size < team.size:
        raise RequestError(
            f"a batch of {batches.batch_size} images cannot be shared by {team.size} processes; raise batch"
        )
    rows = team.slice_of(batches.batch_size)
    return batches.shared(rows) if isinstance(batches, Shareable) else Sliced(batches, rows)


def unsynced(objective: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """For all micro-batches but the last: gradients are summed here and exchanged once."""
    if wanted and isinstance(objective, DistributedDataParallel):
        return objective.no_sync()
    return nullcontext()
