"""What many tests use: one thread, and tiny networks and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT

torch.set_num_threads(1)  # tiny tensors gain nothing from more, and sums keep their order


@dataclass(frozen=True)
class RandomImages:
    """Random uint8 images with labels, in the shape of a split and of its data set at once."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5


@pytest.fixture
def tiny() -> Callable[..., Chain]:
    """Build a small ViT from keyed random numbers: ``tiny(depths=(1, 2), seed=3, width=16, …)``."""

    def build(
        depths: tuple[int, ...] = (1, 1, 1),
        seed: int = 0,
        size: int = 8,
        channels: int = 1,
        classes: int = 3,
        **values: object,
    ) -> Chain:
        params = ViT.model_validate({"width": 16, "heads": 2, "depths": depths, "patch": 4, **values})
        with Key.of(seed, "tiny").forked():
            return vit(params, Port.of("image", channels=channels, size=size), classes)

    return build


@pytest.fixture
def random_images() -> Callable[..., RandomImages]:
    """Build random images: ``random_images(count=37, size=8, channels=1, classes=3)``."""

    def build(count: int = 37, size: int = 8, channels: int = 1, classes: int = 3, seed: int = 0) -> RandomImages:
        source = Key.of(seed, "images").generator()
        shape = (count, channels, size, size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)
        return RandomImages(images, torch.randint(0, classes, (count,), generator=source))

    return build
