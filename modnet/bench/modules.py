"""m2mKD's module phase against the published algorithm, and what replaying stored teacher outputs adds to it.

Baselines: one module after another; for every batch the meta's front and the teacher's hybrid are computed anew. So
does the published code (github.com/kamanphoebe/m2mKD, ``deep_incubation``), which also freezes only what stands before
the module, so that gradients of the meta's tail are computed and never used: ``as published`` does the same,
``frozen tail`` does not. Same networks, batches, augmentation, loss and optimizer (fused AdamW) on both sides.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modnet.bench.networks import BATCH, network, random_data, run_job
from modnet.bench.pairs import Aim, Call, Comparison, Finding, faster, turns
from modnet.chain import Chain, Pass
from modnet.data.loaders import TrainBatches
from modnet.engine.batch import Batches
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.methods.base import module_name
from modnet.methods.m2mkd import M2mkdObjective
from modnet.methods.replaying import Filler, ReplayedBatches
from modnet.randomness import Key
from modnet.recipe.stages import M2mkd, Replaying
from modnet.recipe.training import AdamW, Crop, Flip, Schedule
from modnet.surgery.stitching import stitched

STEPS = 8
AUGMENT = (Crop(), Flip())
Student = tuple[int, int]  # width and seed
STUDENT: Student = (48, 2)


@dataclass(frozen=True)
class Case:
    """How many modules, teacher blocks in each, what is to be reached, and in how many steps it is measured."""

    count: int
    blocks: int
    fused: Aim
    replayed: Aim
    steps: int = STEPS

    @property
    def name(self) -> str:
        """As in the table."""
        return f"K = {self.count}, teacher {self.blocks} blocks"


CASES = (Case(4, 2, faster(1.15), faster(1.7)), Case(10, 3, faster(1.25), faster(2.0), steps=STEPS // 2))


class Phase:
    """The networks, batches and settings of a module phase with ``count`` modules."""

    def __init__(self, count: int, blocks: int, steps: int = STEPS) -> None:
        self.meta, self.teacher = network(64, (1,) * count), network(64, (blocks,) * count, seed=1)
        self.count = count
        self.stage = M2mkd(
            data="d",
            student="s",
            teacher="t",
            meta="m",
            optimizer=AdamW(weight_decay=0.0),
            schedule=Schedule(name="constant", warmup=0),
        )
        self.data = random_data(steps * BATCH)
        self.batches = self.batches_of(0)

    def batches_of(self, seed: int) -> TrainBatches:
        """The training batches in the order and with the augmentation of a seed."""
        return TrainBatches(self.data, BATCH, Key.of(seed), AUGMENT)

    def learners(self, student: Student = STUDENT) -> dict[int, Chain]:
        """A student's modules between stitches, untrained."""
        width, seed = student
        modules = network(width, (1,) * self.count, seed=seed)
        with Key.of(seed, "bench stitches").forked():
            return {i: stitched(module, self.meta, i) for i, module in enumerate(modules)}

    def fused(self, batches: Batches | None = None, student: Student = STUDENT) -> None:
        """All modules at once by the trainer; with replayed batches neither teacher nor its tails are computed."""
        chains = self.learners(student)
        objective = M2mkdObjective(self.meta, self.teacher, chains, self.stage)
        run_job(objective, {module_name(i): c for i, c in chains.items()}, batches or self.batches, self.stage)

    def replayed(self, home: Path, prefix: bool = False) -> ReplayedBatches:
        """Batches with the teacher's stored outputs, which are computed now."""
        objective = M2mkdObjective(self.meta, self.teacher, self.learners(), self.stage)
        filler = Filler(objective, self.batches, self.stage, Replaying(prefix=prefix), lambda text: None)
        replay, _ = filler.ready(home, Key.of(0))
        return ReplayedBatches(self.batches, replay, objective.replayable(prefix))

    def published(self, tail_gradients: bool) -> None:
        """One module after another, everything that is frozen computed anew."""
        for i, learner in self.learners().items():
            behind = self.meta[i + 1 :]
            tail = behind.cloned() if tail_gradients else behind.frozen()
            front, teacher = self.meta[:i].frozen(), self.teacher[i].frozen()
            optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
            for batch in self.batches.epoch(0):
                with torch.no_grad():
                    entering = in_full(front, batch.x)
                    target = in_full(tail, in_full(teacher, entering))
                logits = in_full(tail, in_full(learner, entering))
                term = kd_term(logits, target, self.stage.tau, self.stage.kind, self.stage.kd_norm)
                optimizer.zero_grad()
                blend(base_loss(batch, logits), term, self.stage.alpha).backward()
                optimizer.step()


def in_full(chain: Chain, x: Tensor) -> Tensor:
    """A chain leaf by leaf, each for all tokens, as the published code computes it."""
    ctx = Pass()
    for ctx.leaf, leaf in enumerate(chain.leaves):
        x = leaf(x, ctx)
    return x


def modules(repeats: int) -> list[Finding]:
    """Fused and replayed against one module after another; K = 4 and K = 10."""
    return [finding for case in CASES for finding in _case(case, repeats)]


def _case(case: Case, repeats: int) -> list[Comparison]:
    phase = Phase(case.count, case.blocks, case.steps)
    with tempfile.TemporaryDirectory() as home:
        stored = phase.replayed(Path(home))
        calls: list[Call] = [
            lambda: phase.published(True),
            lambda: phase.published(False),
            phase.fused,
            lambda: phase.fused(stored),
        ]
        published, frozen, fused, replayed = turns(calls, repeats)
    name, together, plain = case.name, "all modules at once", "module after module, "
    return [
        Comparison(f"modules fused, {name}", together, f"{plain}as published", fused, published, case.fused),
        Comparison(f"modules fused, frozen tail, {name}", together, f"{plain}frozen tail", fused, frozen),
        Comparison(
            f"modules replayed, {name}",
            f"{together}, replayed",
            f"{plain}as published",
            replayed,
            published,
            case.replayed,
        ),
    ]
