"""Augmented batches from memory against torchvision's own way: a Dataset of PIL images and a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from modnet.bench.networks import BATCH, random_data
from modnet.bench.pairs import Comparison, Finding, faster, turns
from modnet.data import Split
from modnet.data.loaders import TrainBatches
from modnet.randomness import Key
from modnet.recipe.training import Crop, Flip

STEPS, WORKERS = 32, 2


class Images(torch.utils.data.Dataset[tuple[Any, int]]):
    """A split as torchvision's Fashion-MNIST is one: each image becomes a PIL image, then is transformed."""

    def __init__(self, split: Split, transform: Callable[[Any], Any] | None = None) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.split.images[row, 0].numpy())
        return self.transform(image) if self.transform else image, int(self.split.labels[row])


def loader(repeats: int) -> list[Finding]:
    """Crop and flip: ours, torchvision's in the process itself, and torchvision's in workers that run already."""
    from torchvision import transforms

    dataset = random_data(STEPS * BATCH)
    ours = TrainBatches(dataset, BATCH, Key.of(0), (Crop(), Flip()))
    moved = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()]
    change = transforms.Compose([*moved, transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)])
    images = Images(dataset.train, change)
    alone, shared = (_loader(images, workers) for workers in (0, WORKERS))
    own, one, two = turns(
        [lambda: _gone_through(ours.epoch(0)), lambda: _gone_through(alone), lambda: _gone_through(shared)], repeats
    )
    told = "torchvision's dataset, DataLoader"
    return [
        Comparison("loader", "batched, keyed", told, own, one),
        Comparison("loader, 2 workers", "batched, keyed", f"{told} of {WORKERS} workers", own, two, faster(20)),
    ]


def _loader(images: Images, workers: int) -> DataLoader[tuple[Tensor, int]]:
    source = Key.of(0).generator()
    return DataLoader(
        images, BATCH, shuffle=True, generator=source, num_workers=workers, persistent_workers=workers > 0
    )


def _gone_through(batches: Iterable[object]) -> None:
    for _ in batches:
        pass
