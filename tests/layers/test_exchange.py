"""Experts in several processes: the rows and the gradients of one process, however unequal the loads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import group

from modnet.engine.ranks import join
from modnet.layers.exchange import Exchange
from modnet.layers.moe import Experts
from modnet.randomness import Key
from tests.ranks import in_processes

EXPERTS, WIDTH = 4, 6
# Rows for each expert, in each of two processes, and how many rows behind them no expert has.
LOADS: list[tuple[list[int], list[int], int]] = [
    ([3, 1, 2, 5], [1, 1, 1, 1], 0),
    ([0, 7, 0, 1], [2, 0, 0, 9], 3),  # the third expert gets nothing
    ([0, 0, 4, 4], [0, 0, 1, 0], 1),  # the first process's experts get nothing
    ([0, 0, 0, 0], [0, 2, 0, 0], 2),  # the first process sends nothing
    ([0, 0, 0, 0], [0, 0, 0, 0], 0),
]


def experts() -> Experts:
    with Key.of(0).forked():
        return Experts(WIDTH, 5, EXPERTS)


def rows(case: int, rank: int) -> tuple[Tensor, Tensor]:
    """Rows (M, width) sorted by expert, those of nobody behind them, and where each expert's end."""
    first, second, dropped = LOADS[case]
    loads = second if rank else first
    x = Key.of(case, rank).normal(torch.arange(sum(loads) + dropped), WIDTH)
    return x.requires_grad_(), torch.tensor(loads).cumsum(0)


def passed(whole: Experts, case: int, rank: int) -> tuple[Tensor, Tensor]:
    """Output and gradient by the rows, of a loss in which no two outputs count alike."""
    x, ends = rows(case, rank)
    out = whole(x, ends)
    weights = Key.of(case, rank, "loss").normal(torch.arange(len(x)), WIDTH)
    (out * weights).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def _spread() -> list[Any]:
    team = join(torch.device("cpu")).team
    own = experts()
    each = EXPERTS // team.size
    for p in own.parameters():
        p.data = p.data[each * team.rank : each * (team.rank + 1)].clone()
    assert group.WORLD is not None
    own.exchange = Exchange(group.WORLD)
    found: list[Any] = []
    for case in range(len(LOADS)):
        own.zero_grad()
        found.append([t.numpy() for t in passed(own, case, team.rank)])
        found[-1] += [p.grad.numpy().copy() for p in own.parameters() if p.grad is not None]
    return found


def test_experts_in_two_processes_equal_those_of_one() -> None:
    spread = in_processes(2, _spread)
    for case in range(len(LOADS)):
        whole = experts()
        for rank in (0, 1):
            for mine, tensor in zip(spread[rank][case], passed(whole, case, rank), strict=False):
                assert torch.allclose(torch.from_numpy(mine), tensor, atol=1e-6)
        for index, p in enumerate(whole.parameters()):
            parts = [torch.from_numpy(spread[rank][case][2 + index]) for rank in (0, 1)]
            assert p.grad is not None
            assert torch.allclose(torch.cat(parts), p.grad, atol=1e-5)


def test_rows_of_nobody_give_zeros() -> None:
    out = torch.from_numpy(in_processes(2, _spread)[0][1][0])
    assert torch.equal(out[-3:], torch.zeros(3, WIDTH))
    assert bool(out[:-3].any(1).all())
