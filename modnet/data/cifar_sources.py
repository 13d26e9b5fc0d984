"""CIFAR-10 and CIFAR-100 as sources: as they are, held in memory, or enlarged for networks of larger pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from PIL import Image
from torch import Tensor

from modnet.chain import Port
from modnet.data import cifar
from modnet.data.folder import IMAGENET_MOMENTS, splits
from modnet.data.large import FolderSplit, Reader
from modnet.data.sources import Description
from modnet.data.splits import Split
from modnet.data.synthetic import drawn
from modnet.recipe.sources import Cifar

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
    orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
    rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Picture:
    """An image in memory, uint8 (3, 32, 32), as if it lay in a file."""

    pixels: Tensor

    def open(self) -> IO[bytes]:
        """The encoded picture."""
        file = io.BytesIO()
        Image.fromarray(self.pixels.permute(1, 2, 0).numpy()).save(file, "BMP")
        file.seek(0)
        return file


def enlarged(split: Split, size: int) -> FolderSplit:
    """A split of images of ``size`` x ``size`` pixels, each enlarged bicubically when it is needed."""
    pictures = [Picture(image) for image in split.images]
    return FolderSplit(pictures, split.labels, split.ids, Reader(size, 3, squash=True))


def cifar10(params: Cifar) -> Description:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour photographs, 32 x 32."""
    return _described(params, CIFAR10_CLASSES, lambda: cifar.read(cifar.CIFAR10))


def cifar100(params: Cifar) -> Description:
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour photographs, 32 x 32."""
    return _described(params, CIFAR100_CLASSES, lambda: cifar.read(cifar.CIFAR100))


def _described(params: Cifar, classes: tuple[str, ...], read: Callable[[], tuple[Split, Split]]) -> Description:
    name, size = params.name, params.size
    port = Port.of("image", channels=3, size=size)
    if params.synthetic:
        listing = drawn(classes, size)
        shown = functools.partial(splits, listing, Reader(size, 3), True, name, "synthetic pictures")
        return Description(classes, port, f"{name}-synthetic-{size}", shown, IMAGENET_MOMENTS)
    if size == Cifar.model_fields["size"].default:
        return Description(classes, port, f"{name}-1", read)

    def larger() -> tuple[Split, Split]:
        train, test = (enlarged(split, size) for split in read())
        return train, test

    return Description(classes, port, f"{name}-1-{size}", larger, IMAGENET_MOMENTS)
