"""A small job that exercises the whole trainer: two blocks, keyed noise, made-up separable data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Module, Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Track
from modnet.engine.outcome import Outcome
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.randomness import Key
from modnet.recipe.stages import TrainingStage
from modnet.recipe.training import AdamW, Schedule
from modnet.registry import Params

WIDTH, CLASSES, COUNT, BATCH = 8, 3, 48, 12


class Block(Module):
    """A residual two-matrix block with keyed multiplicative noise while training."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 3 * width)
        self.fc2 = nn.Linear(3 * width, width)

    def matrices(self) -> dict[str, int]:
        return {"fc1.weight": 3, "fc2.weight": 1}

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.fc1(self.norm(x))))
        if ctx.stochastic and self.training:
            assert ctx.ids is not None
            out = out * (0.5 + ctx.rng("noise").uniform(ctx.ids))
        return x + out


class Head(Module):
    role = "head"

    def __init__(self, width: int = WIDTH, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.head(x)
        return out


def toy_chain(seed: int = 0) -> Chain:
    with Key.of(seed).forked():
        return Chain([Block(), Block(), Head()], [0, 1, 3])


class ToyBatches:
    """Separable points, shuffled by epoch."""

    def __init__(self, key: Key) -> None:
        self.key, self.steps_per_epoch, self.batch_size = key, COUNT // BATCH, BATCH
        self.y = torch.arange(COUNT) % CLASSES
        noise = Key.of(7).normal(torch.arange(COUNT), WIDTH)
        self.x = noise + 2 * nn.functional.one_hot(self.y, WIDTH)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self.key.fold("order", epoch).permutation(COUNT)
        for step in range(start, self.steps_per_epoch):
            ids = order[step * BATCH : (step + 1) * BATCH]
            yield Batch(self.x[ids], self.y[ids], ids)


class Objective(nn.Module):
    """Cross-entropy for each track; ``fault(step)`` is called on every pass and may raise."""

    def __init__(self, chains: dict[str, Chain], fault: Callable[[int], Any] | None = None) -> None:
        super().__init__()
        self.chains = nn.ModuleDict(chains)
        self.fault, self.calls = fault, 0

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        self.calls += 1
        if self.fault is not None:
            self.fault(self.calls)
        return {
            name: nn.functional.cross_entropy(chain(batch.x, ctx.enter(name)), batch.y)
            for name, chain in self.chains.items()
        }


def toy_job(
    optimizer: Params | None = None,
    fault: Callable[[int], Any] | None = None,
    tracks: int = 1,
    **settings: Any,
) -> Job:
    """A job of ``settings.epochs`` epochs of 4 steps."""
    key = Key.of(3)
    chains = {f"track{i}": toy_chain(i) for i in range(tracks)}
    values = {"epochs": 3, "schedule": Schedule(warmup=2), **settings}
    stage = TrainingStage(run="train", data="toy", batch=BATCH, **values)
    batches = ToyBatches(key)

    def validate() -> dict[str, dict[str, float]]:
        return {name: _measure(chain, batches) for name, chain in chains.items()}

    made = [
        Track(name, chain, optimizer or AdamW(lr=0.01), stage.schedule, stage.clip, stage.ema)
        for name, chain in chains.items()
    ]
    return Job("toy", Objective(chains, fault), made, batches, stage, key, validate)


@torch.no_grad()
def _measure(chain: Chain, batches: ToyBatches) -> dict[str, float]:
    logits = chain.eval()(batches.x)
    loss = nn.functional.cross_entropy(logits, batches.y)
    return {"top1": float((logits.argmax(1) == batches.y).float().mean() * 100), "loss": float(loss)}


def quiet(folder: Path) -> Reporter:
    return Reporter(folder, "toy", tensorboard=False)


def weights(job: Job) -> dict[str, Tensor]:
    """All weights of a job's chains, by track and name."""
    return {f"{t.name}/{k}": v for t in job.tracks for k, v in t.chain.state_dict().items()}


def run(folder: Path, **arguments: Any) -> tuple[Job, Outcome]:
    """Train a toy job in a folder; the job and its outcome."""
    folder.mkdir(exist_ok=True)
    job = toy_job(**arguments)
    return job, train(job, folder, quiet(folder))
