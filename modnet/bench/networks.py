"""Networks and random images in the shape of Fashion-MNIST, and jobs on them, for all that is timed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from modnet.chain import Chain, Port
from modnet.data import Dataset, Split, load
from modnet.engine.batch import Batches
from modnet.engine.job import Job, Track
from modnet.engine.ranks import SOLO, Team
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.errors import RunFailed
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.recipe.sources import Source
from modnet.recipe.stages import TrainingStage

IMAGE = Port.of("image", channels=1, size=28)
BATCH, CLASSES = 128, 10


def network(width: int, depths: tuple[int, ...], stem: str = "conv", seed: int = 0) -> Chain:
    """A ViT for 28-pixel images."""
    params = ViT.model_validate({"width": width, "depths": depths, "heads": width // 16, "stem": stem})
    with Key.of(seed, "bench").forked():
        return vit(params, IMAGE, CLASSES)


def random_data(images: int, port: Port = IMAGE) -> Dataset:
    """Random images, in the shape of Fashion-MNIST unless another port is given."""
    source = Key.of(0, "bench data").generator()
    shape = (images, port["channels"], port["size"], port["size"])
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)
    split = Split.of(pixels, torch.randint(0, CLASSES, (images,), generator=source))
    few = split.take(torch.arange(min(BATCH, images)))
    names = tuple(map(str, range(CLASSES)))
    moments = (0.5,) * port["channels"], (0.3,) * port["channels"]
    return Dataset("random", split, few, few, names, port, *moments, "random")


def job_of(objective: nn.Module, chains: dict[str, Chain], batches: Batches, settings: TrainingStage) -> Job:
    """A job that trains chains, and whose validation does nothing."""
    tracks = [Track(name, chain, settings.optimizer, settings.schedule) for name, chain in chains.items()]
    scores: dict[str, dict[str, float]] = {name: {"top1": 0.0} for name in chains}
    return Job("bench", objective, tracks, batches, settings, Key.of(0), lambda: scores)


def run_job(
    objective: nn.Module, chains: dict[str, Chain], batches: Batches, settings: TrainingStage, team: Team = SOLO
) -> None:
    """Train chains by the trainer, metrics log and checkpoints included, in a folder that is removed afterwards."""
    job = job_of(objective, chains, batches, settings)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(team.told(own))
        train(job, folder, Reporter(Path(own), "bench", tensorboard=False), team)
        team.wait()


def fashion_mnist() -> Dataset | None:
    """Fashion-MNIST, all of its training images but val; None where it is not here and cannot be fetched."""
    try:
        return load(Source(name="fashion-mnist"))
    except RunFailed:
        return None
