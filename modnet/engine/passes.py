"""A pass of a batch through an objective, in the groups of tracks whose graphs hang together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn

from modnet.chain import Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Apart


def in_groups(
    objective: nn.Module, part: Batch, ctx: Pass, apart: bool, autocast: Callable[[], AbstractContextManager[None]]
) -> Iterator[dict[str, Tensor]]:
    """The losses by track, group by group: the graph of each is gone before the next one's begins.

    Gradients are the same bits, and memory is that of one group. Without ``apart``, or of an objective that is not
    :class:`~modnet.engine.job.Apart`, there is one group. Every pass runs under an ``autocast()`` of its own.
    """
    if not apart or not isinstance(objective, Apart):
        with autocast():
            losses = objective(part, ctx)
        yield losses
        return
    groups = objective.apart(part, ctx)
    while True:
        with autocast():
            found = next(groups, None)
        if found is None:
            return
        yield found
