"""m2mKD's module phase against the published algorithm, and what replaying stored teacher outputs adds to it.

Baselines: one module after another; for every batch the meta's front and the teacher's hybrid are computed anew. So
does the published code (github.com/kamanphoebe/m2mKD, ``deep_incubation``), which also freezes only what stands before
the module, so that gradients of the meta's tail are computed and never used: ``as published`` does the same,
``frozen tail`` does not. Same networks, batches, augmentation, loss and optimizer (fused AdamW) on both sides.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from modnet.bench.networks import BATCH, network, random_data, run_job
from modnet.bench.pairs import Comparison, compare
from modnet.chain import Chain
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

CASES = {"K = 4, teacher 2 blocks": (4, 2), "K = 10, teacher 3 blocks": (10, 3)}
STEPS = 8
AUGMENT = (Crop(), Flip())


class Phase:
    """The networks, batches and settings of a module phase with ``count`` modules."""

    def __init__(self, count: int, blocks: int, steps: int = STEPS) -> None:
        self.meta, self.teacher = network(64, (1,) * count), network(64, (blocks,) * count, seed=1)
        self.student = network(48, (1,) * count, seed=2)
        self.stage = M2mkd(
            data="d",
            student="s",
            teacher="t",
            meta="m",
            optimizer=AdamW(weight_decay=0.0),
            schedule=Schedule(name="constant", warmup=0),
        )
        self.batches = TrainBatches(random_data(steps * BATCH), BATCH, Key.of(0), AUGMENT)

    def learners(self) -> dict[int, Chain]:
        """Students between stitches, untrained."""
        with Key.of(0, "bench stitches").forked():
            return {i: stitched(module.cloned(), self.meta, i) for i, module in enumerate(self.student)}

    def fused(self, batches: Batches | None = None) -> None:
        """All modules at once by the trainer; with replayed batches neither teacher nor its tails are computed."""
        chains = self.learners()
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
            tail: nn.Module = behind.cloned() if tail_gradients else behind.frozen()
            front, teacher = self.meta[:i].frozen(), self.teacher[i].frozen()
            optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
            for batch in self.batches.epoch(0):
                with torch.no_grad():
                    entering = front(batch.x)
                    target = tail(teacher(entering))
                logits = tail(learner(entering))
                term = kd_term(logits, target, self.stage.tau, self.stage.kind, self.stage.kd_norm)
                optimizer.zero_grad()
                blend(base_loss(batch, logits), term, self.stage.alpha).backward()
                optimizer.step()


def modules(repeats: int) -> list[Comparison]:
    """Fused and replayed against one module after another; K = 4 and K = 10."""
    found = []
    for name, (count, blocks) in CASES.items():
        phase = Phase(count, blocks)
        published = ("as published", lambda p=phase: p.published(True))
        frozen = ("module after module, frozen tail", lambda p=phase: p.published(False))
        fused = ("all modules at once", lambda p=phase: p.fused())
        with tempfile.TemporaryDirectory() as home:
            batches = phase.replayed(Path(home))
            replayed = ("all at once, replayed teacher", lambda p=phase, b=batches: p.fused(b))
            found += [
                compare(f"modules fused, {name}", fused, published, repeats),
                compare(f"modules fused, frozen tail, {name}", fused, frozen, repeats),
                compare(f"modules replayed, {name}", replayed, published, repeats),
            ]
    return found
