"""What a training job came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modnet.engine.checkpoint import Best


@dataclass
class Outcome:
    """After training: ``metrics`` on val of the weights that the chains hold now, per track.

    ``best``: per track the epoch (from 1; 0: before training), score and metrics of the best validation. ``history``:
    every validation, ``{"epoch": e, "metrics": {track: {...}}}``. ``seconds``: time in training steps, reading and
    augmentation included, over all restarts; ``waiting``: those of them in which a step waited for its batch;
    ``images``: training images seen.
    """

    steps: int
    epochs: int
    seconds: float
    waiting: float
    images: int
    metrics: dict[str, dict[str, float]]
    best: dict[str, Best]
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Training throughput, 0 if nothing was trained."""
        return self.images / self.seconds if self.seconds else 0.0
