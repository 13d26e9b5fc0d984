"""Networks and random images in the shape of Fashion-MNIST, and jobs on them, for all that is timed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modnet.chain import Chain, Port
from modnet.data import Dataset, Split
from modnet.engine.batch import Batches
from modnet.engine.job import Job, Track
from modnet.engine.ranks import SOLO, Team
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.recipe.stages import TrainingStage

IMAGE = Port.of("image", channels=1, size=28)
BATCH, CLASSES = 128, 10


def network(width: int, depths: tuple[int, ...], stem: str = "conv", seed: int = 0) -> Chain:
    """A ViT for 28-pixel images."""
    params = ViT.model_validate({"width": width, "depths": depths, "heads": width // 16, "stem": stem})
    with Key.of(seed, "bench").forked():
        return vit(params, IMAGE, CLASSES)


def random_data(images: int) -> Dataset:
    """Random images in the shape of Fashion-MNIST."""
    source = Key.of(0, "bench data").generator()
    pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=source)
    split = Split.of(pixels, torch.randint(0, CLASSES, (images,), generator=source))
    few = split.take(torch.arange(min(BATCH, images)))
    names = tuple(map(str, range(CLASSES)))
    return Dataset("random", split, few, few, names, IMAGE, (0.5,), (0.3,), "random")


def run_job(
    objective: nn.Module, chains: dict[str, Chain], batches: Batches, settings: TrainingStage, team: Team = SOLO
) -> None:
    """Train chains by the trainer, metrics log and checkpoints included, in a folder that is removed afterwards."""
    tracks = [Track(name, chain, settings.optimizer, settings.schedule) for name, chain in chains.items()]
    scores: dict[str, dict[str, float]] = {name: {"top1": 0.0} for name in chains}
    job = Job("bench", objective, tracks, batches, settings, Key.of(0), lambda: scores)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(team.told(own))
        train(job, folder, Reporter(Path(own), "bench", tensorboard=False), team)
        team.wait()


def libraries() -> dict[str, Any]:
    """Versions of what the baselines are written with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torchvision", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
