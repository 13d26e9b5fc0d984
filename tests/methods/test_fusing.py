"""One batch through the tail or one after another: the same bits; how many at once follows from the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modnet.chain import Chain, Module, Pass
from modnet.engine.batch import Batch
from modnet.engine.choices import Choice, remember
from modnet.methods import fusing
from modnet.methods.fusing import group_name, joining, saved_bytes, trial_batch, width_that_fits
from modnet.methods.incubation import IncubationObjective
from modnet.methods.m2mkd import M2mkdObjective
from modnet.methods.modulewise import ModuleObjective
from modnet.randomness import Key
from modnet.recipe.stages import M2mkd
from modnet.surgery import stitched


@pytest.fixture
def objective(tiny: Callable[..., Chain]) -> M2mkdObjective:
    meta, teacher = tiny(), tiny(depths=(2, 2, 2), seed=1)
    students = {i: stitched(m, meta, i) for i, m in enumerate(tiny(seed=2, width=8))}
    return M2mkdObjective(meta, teacher, students, M2mkd(data="d", student="s", teacher="t", meta="m", hint=0.3))


def batch(count: int = 6) -> Batch:
    return trial_batch(Key.of(1).normal(torch.arange(4), 64).view(4, 1, 8, 8), count, 3)


class Scaling(Module):
    """A module whose rows are the same bits in any batch."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return (x * self.factor).tanh()


@pytest.fixture
def elementwise() -> IncubationObjective:
    modules = {i: Chain([Scaling(0.5 + i)]) for i in range(3)}
    return IncubationObjective(Chain([Scaling(), Scaling(2.0), Scaling(1.5)], [0, 1, 2, 3]), modules, 0.0)


def losses_and_gradients(objective: ModuleObjective, joined: bool) -> list[Tensor]:
    objective.joined = joined
    losses = list(objective(batch(), Pass()).values())
    learning = [p for p in objective.parameters() if p.requires_grad]
    return [*losses, *torch.autograd.grad(torch.stack(losses).sum(), learning)]


def test_a_joined_tail_gives_the_same_losses_and_gradients(objective: M2mkdObjective) -> None:
    apart, together = (losses_and_gradients(objective, joined) for joined in (False, True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(apart, together, strict=True))


def test_the_trial_takes_what_is_faster(elementwise: IncubationObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    for quick in (False, True):
        monkeypatch.setattr(fusing, "_timed", lambda o, g, joined, d, quick=quick: 1.0 if joined is quick else 2.0)
        assert joining(elementwise, batch()).value is quick


def test_modules_that_give_other_shapes_are_not_joined() -> None:
    class OneRow(Scaling):
        def forward(self, x: Tensor, ctx: Pass) -> Tensor:
            return super().forward(x, ctx)[:, :, :1]

    host = Chain([Scaling(), Scaling(2.0), Scaling(1.5)], [0, 1, 2, 3])
    uneven = IncubationObjective(host, {0: Chain([OneRow()]), 1: Chain([Scaling(0.5)])}, 0.0)
    assert joining(uneven, batch()) == Choice(False, "modules give features of different shapes")


def test_the_trial_refuses_other_bits(elementwise: IncubationObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    through = elementwise.through

    def shifted(given: dict[int, Tensor]) -> dict[int, Tensor]:
        return {i: x + 1e-6 * elementwise.joined for i, x in through(given).items()}

    monkeypatch.setattr(elementwise, "through", shifted)
    assert joining(elementwise, batch()) == Choice(False, "in one batch the last bits differ on this machine")


def test_memory_bounds_how_many_are_fused(objective: M2mkdObjective) -> None:
    one = saved_bytes(lambda few: objective(few, Pass()), batch())
    assert one == pytest.approx(saved_bytes(lambda few: objective(few, Pass()), batch(60)), rel=0.1)
    assert 10_000 < one < 10_000_000
    assert [width_that_fits(4, 100, free).value for free in (None, 10_000, 500, 10)] == [4, 4, 2, 1]


def test_names_of_groups() -> None:
    assert [group_name(p, 4) for p in ([0, 1, 2, 3], [2], [0, 1])] == ["modules", "module2", "modules0-1"]
    assert group_name([0], 1) == "module0"


def test_a_choice_is_made_once(tmp_path: Any) -> None:
    first = remember(tmp_path, "fused", lambda: Choice(2, "so"))
    assert first == (Choice(2, "so"), True)
    assert remember(tmp_path, "fused", lambda: Choice(3, "else")) == (Choice(2, "so"), False)
