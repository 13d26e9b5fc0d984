"""What is measured: each subject gives comparisons; baselines are written plainly and fairly."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from modnet.bench.moe import moe
from modnet.bench.pairs import Comparison, compare
from modnet.chain import Chain, Pass, Port
from modnet.data import Dataset, Split
from modnet.data.loaders import TrainBatches
from modnet.engine.job import Job, Track
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.methods.m2mkd import M2mkdObjective
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.recipe.stages import M2mkd, Train
from modnet.recipe.training import AdamW, Crop, Flip, Schedule
from modnet.surgery.stitching import stitched

IMAGE = Port.of("image", channels=1, size=28)
BATCH, CLASSES = 128, 10


def network(width: int, depths: tuple[int, ...]) -> Chain:
    """A ViT for 28-pixel images."""
    with Key.of(0, "bench").forked():
        return vit(ViT(width=width, depths=depths, heads=width // 16, stem="conv"), IMAGE, CLASSES)


def random_data(images: int) -> Dataset:
    """Random images in the shape of Fashion-MNIST."""
    source = Key.of(0, "bench data").generator()
    pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=source)
    split = Split.of(pixels, torch.randint(0, CLASSES, (images,), generator=source))
    few = split.take(torch.arange(BATCH))
    names = tuple(map(str, range(CLASSES)))
    return Dataset("random", split, few, few, names, IMAGE, (0.5,), (0.3,), "random")


def step(repeats: int) -> list[Comparison]:
    """Training through the trainer against a bare loop over resident tensors, same network, AdamW."""
    steps, dataset = 20, random_data(20 * BATCH)
    settings = Train(data="random", model="vit", optimizer=AdamW(), schedule=Schedule(warmup=0))
    images = dataset.normalise(dataset.train.images)

    def ours() -> None:
        """A job of one epoch, checkpoint and metrics log included."""
        chain = network(48, (1, 1, 1, 1))
        track = Track(TRACK, chain, settings.optimizer, settings.schedule)
        batches = TrainBatches(dataset, BATCH, Key.of(0))
        job = Job(
            TRACK, WholeNetwork(chain, 0.0), [track], batches, settings, Key.of(0), lambda: {TRACK: {"top1": 0.0}}
        )
        with tempfile.TemporaryDirectory() as folder:
            train(job, Path(folder), Reporter(Path(folder), "bench", tensorboard=False))

    def bare() -> None:
        chain = network(48, (1, 1, 1, 1)).train()
        optimizer = torch.optim.AdamW(chain.parameters(), lr=1e-3, fused=True)
        for x, y in zip(images.split(BATCH), dataset.train.labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(chain(x), y).backward()
            optimizer.step()

    return [compare("step", (f"{steps} steps of the trainer", ours), ("bare loop", bare), repeats)]


def modules(repeats: int) -> list[Comparison]:
    """m2mKD's module phase, all modules in one pass against one module after another, K = 4."""
    meta, teacher, student = network(64, (1,) * 4), network(64, (2,) * 4), network(48, (1,) * 4)
    learners = {i: stitched(module, meta, i) for i, module in enumerate(student)}
    kd = M2mkd(data="d", student="s", teacher="t", meta="m")
    batch = next(TrainBatches(random_data(BATCH), BATCH, Key.of(0)).epoch(0))
    fused = M2mkdObjective(meta, teacher, learners, kd)
    single = [M2mkdObjective(meta, teacher, {i: chain}, kd) for i, chain in learners.items()]

    def run(objectives: list[M2mkdObjective]) -> None:
        for objective in objectives:
            sum(objective(batch, Pass()).values()).backward()

    ours = ("all modules in one pass", lambda: run([fused]))
    return [compare("modules", ours, ("one module after another", lambda: run(single)), repeats)]


def loader(repeats: int) -> list[Comparison]:
    """Augmented batches from memory against torchvision's transforms, image by image."""
    from torchvision.transforms import v2

    dataset = random_data(8 * BATCH)
    batches = TrainBatches(dataset, BATCH, Key.of(0), (Crop(), Flip()))
    transform = v2.Compose([v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip()])

    def ours() -> None:
        for _ in islice(batches.epoch(0), None):
            pass

    def one_by_one() -> None:
        for rows in torch.arange(len(dataset.train)).split(BATCH):
            dataset.normalise(torch.stack([transform(dataset.train.images[i]) for i in rows.tolist()]))

    return [compare("loader", ("batched, keyed", ours), ("transforms.v2, one image at a time", one_by_one), repeats)]


def startup(repeats: int) -> list[Comparison]:
    """``modnet --help`` and ``modnet validate`` against starting Python with the libraries that they need."""

    def python(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    bare = ("import typer", python("-c", "import typer"))
    libraries = ("import typer, pydantic, yaml", python("-c", "import typer, pydantic, yaml"))
    validate = python("-m", "modnet", "validate", "fashion-mnist/m2mkd")
    return [
        compare("startup --help", ("modnet --help", python("-m", "modnet", "--help")), bare, repeats),
        compare("startup validate", ("modnet validate", validate), libraries, repeats),
    ]


SUBJECTS: dict[str, Callable[[int], list[Comparison]]] = {
    "startup": startup,
    "loader": loader,
    "step": step,
    "modules": modules,
    "moe": moe,
}
