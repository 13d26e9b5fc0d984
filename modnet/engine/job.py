"""What the trainer is given: an objective, and tracks of parameters that learn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch, Batches
from modnet.randomness import Key
from modnet.recipe.stages import TrainingStage
from modnet.registry import Params

Metrics = dict[str, float]


@runtime_checkable
class Apart(Protocol):
    """An objective of several tracks that can give their losses one after another, on graphs that share nothing."""

    def apart(self, batch: Batch, ctx: Pass) -> Iterator[dict[str, Tensor]]:
        """The losses by track, together those that ``forward`` gives."""
        ...


@dataclass
class Track:
    """A disjoint set of trainable parameters with its own optimizer; K fused modules are K tracks."""

    name: str
    chain: Chain
    optimizer: Params
    schedule: Params
    clip: float | None = None
    ema: float | None = None


@dataclass
class Job:
    """One training run: ``objective(batch, ctx)`` gives a scalar loss per track name.

    ``validate()`` measures every track on val (accuracies in percent); ``score`` names the metric that picks the best.
    ``start``: a checkpoint folder whose weights and optimizer state this job goes on from.
    """

    name: str
    objective: nn.Module
    tracks: list[Track]
    batches: Batches
    settings: TrainingStage
    key: Key
    validate: Callable[[], dict[str, Metrics]]
    score: str = "top1"
    start: Path | None = None
