"""Experts that are dealt to several processes: tokens travel to the experts they chose, and the results back.

Every process routes its own tokens as if it had all experts, and has as many of them as its fellows, in order (expert
parallelism: GShard, Lepikhin et al. 2021). How many tokens an expert gets, and from whom, may differ in every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

Compute = Callable[[Tensor, Tensor], Tensor]


def held(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be divided over several (a DTensor); gradients flow through."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided over several processes, all of which call this."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


class PerExpert(nn.Module):
    """What has parameters for each expert, stacked along the first axis, and works on rows sorted by expert."""

    exchange: Exchange | None = None  # where the stacks hold this process's experts alone

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows (M, in), sorted by expert up to ``ends`` (E,), to (M, out); rows behind the last end give zeros."""
        return self.compute(x, ends) if self.exchange is None else self.exchange(self.compute, x, ends)

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        """As :meth:`forward`, for the experts that are here."""
        raise NotImplementedError


@dataclass(frozen=True)
class Route:
    """Who sends how many rows to whom. ``rows``: of the buffer here, with those that no expert has.

    ``sent`` and ``received``: rows to and from every process. ``order``: where each row, sorted by expert, stands
    among those received. ``ends``: where the rows of each expert that is here end.
    """

    group: distributed.ProcessGroup
    rows: int
    sent: list[int]
    received: list[int]
    order: Tensor
    ends: Tensor

    def there(self, x: Tensor) -> Tensor:
        """Rows (M, D) sorted by expert to those of this process's experts, sorted likewise."""
        arrived = x.new_empty(sum(self.received), x.shape[1])
        given = x[: sum(self.sent)].contiguous()
        distributed.all_to_all_single(arrived, given, self.received, self.sent, group=self.group)
        return arrived.index_select(0, self.order)

    def back(self, y: Tensor) -> Tensor:
        """The way back, and the adjoint of :meth:`there`: rows (M, D), zeros for those that no expert has."""
        as_arrived = torch.empty_like(y)
        as_arrived[self.order] = y
        out = y.new_zeros(self.rows, y.shape[1])
        distributed.all_to_all_single(out[: sum(self.sent)], as_arrived, self.sent, self.received, group=self.group)
        return out


class Exchange:
    """A group of processes to which experts are dealt, equally many to each, in order."""

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self.group, self.size = group, distributed.get_world_size(group)

    def __call__(self, compute: Compute, x: Tensor, ends: Tensor) -> Tensor:
        """``compute`` by the processes that have the experts; every process of the group takes part."""
        route = self.route(len(x), ends)
        given = compute(_Carry.apply(x, route, False), route.ends)
        out: Tensor = _Carry.apply(given, route, True)
        return out

    @torch.no_grad()
    def route(self, rows: int, ends: Tensor) -> Route:
        """How rows travel that are sorted by expert up to ``ends`` (E,); waits for the device once."""
        counts = ends.diff(prepend=ends.new_zeros(1)).view(self.size, -1)
        asked = torch.empty_like(counts)  # of each process, for each expert that is here
        distributed.all_to_all_single(asked, counts, group=self.group)
        sent, received = torch.stack([counts.sum(1), asked.sum(1)]).tolist()
        experts = torch.arange(asked.shape[1], device=ends.device).repeat(self.size)
        arrived = experts.repeat_interleave(asked.flatten(), output_size=sum(received))
        return Route(self.group, rows, sent, received, arrived.argsort(stable=True), asked.sum(0).cumsum(0))


class _Carry(torch.autograd.Function):
    """Rows on their way there or back; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: Route, back: bool) -> Tensor:
        ctx.route, ctx.back = route, back
        return route.back(x) if back else route.there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        route: Route = ctx.route
        return route.there(grad) if ctx.back else route.back(grad), None, None
