"""Frozen layers that are cast once give what autocast gives, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from modnet.chain import Chain, Pass
from modnet.engine.casting import cast_frozen
from modnet.methods.fusing import trial_batch
from modnet.methods.incubation import IncubationObjective
from modnet.methods.supervised import WholeNetwork
from modnet.surgery.freezing import only_head


def test_casting_once_changes_no_bit_of_a_step(tiny: Callable[..., Chain]) -> None:
    meta = tiny()
    kept = [p.clone() for p in meta.parameters()]
    objective = IncubationObjective(meta, {i: m.cloned() for i, m in enumerate(tiny(seed=1))}, 0.0)
    batch = trial_batch(torch.linspace(-1, 1, 4 * 64).sin().view(4, 1, 8, 8), 4, 3)
    learning = [p for p in objective.parameters() if p.requires_grad]

    def step() -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = list(objective(batch, Pass()).values())
        return [*losses, *torch.autograd.grad(torch.stack(losses).sum(), learning)]

    before = step()
    assert cast_frozen(objective, torch.bfloat16) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, step(), strict=True))
    assert cast_frozen(objective, torch.bfloat16) == 0
    assert all(torch.equal(p, q) for p, q in zip(meta.parameters(), kept, strict=True))
    assert all(p.dtype == torch.float32 for p in learning)


def test_a_network_whose_head_alone_learns_stays_as_it_is(tiny: Callable[..., Chain]) -> None:
    objective = WholeNetwork(only_head(tiny()), 0.0)
    assert cast_frozen(objective, torch.bfloat16, [objective.chain]) == 0
    assert cast_frozen(objective, torch.bfloat16) > 0
