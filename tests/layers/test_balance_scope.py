"""Global balance over two processes: the losses and gradients that one process finds on all tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

import modnet.recipe.routers  # noqa: F401 - registers the names
from modnet.layers.routers import Gate
from modnet.randomness import Key
from modnet.registry import ROUTERS

LOSSES = dict.fromkeys(("importance", "load", "gshard", "switch", "z", "mutual_information", "concentration"), 0.1)


def gate() -> Gate:
    params = ROUTERS.read({"name": "softmax-top-k", "noise": 1.0, "balance_scope": "global", **LOSSES})
    with Key.of(0).forked():
        made: Gate = ROUTERS.get(params.name).resolve()(6, 4, 2, params)
        torch.nn.init.normal_(made.gate.weight)
    return made


def found(tokens: slice) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the router on some of eight tokens."""
    made = gate()
    x, eps = Key.of(1).normal(torch.arange(8), 6), Key.of(2).normal(torch.arange(8), 4)
    loss = made.loss(made(x[tokens], eps[tokens]))
    assert loss is not None
    loss.backward()
    assert made.gate.weight.grad is not None
    return loss.detach(), made.gate.weight.grad


def worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for value in (pair := found(slice(4 * rank, 4 * rank + 4))):
            distributed.all_reduce(value)
        if rank == 0:
            torch.save([value / 2 for value in pair], Path(folder) / "found.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path),), nprocs=2)
    loss, grad = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = found(slice(0, 8))
    torch.testing.assert_close(loss, alone[0])
    torch.testing.assert_close(grad, alone[1])
