"""Shift suites whose images were collected, not computed: ImageNet-R for ImageNet and Tiny-ImageNet.

Such a suite holds some of its source's classes, and the prediction is chosen among these alone (Hendrycks et al. 2021).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modnet.chain import Port
from modnet.data import layouts
from modnet.data.files import data_home
from modnet.data.folder import IMAGENET_MOMENTS, Listing, held, splits
from modnet.data.large import Reader
from modnet.data.published import listed, place
from modnet.data.splits import Dataset, Split
from modnet.data.synthetic import drawn
from modnet.data.wordnet import wnids
from modnet.recipe.sources import ImageNets


@dataclass(frozen=True)
class Collection:
    """Images of the classes ``shown`` of a source with more ``classes``; ``read()`` labels them in the source's."""

    name: str
    classes: tuple[str, ...]
    shown: tuple[str, ...]
    port: Port
    fingerprint: str
    read: Callable[[], Split]

    @property
    def mask(self) -> Tensor:
        """Which of the source's classes may be predicted: bool (classes,)."""
        shown = frozenset(self.shown)
        return torch.tensor([label in shown for label in self.classes])

    def dataset(self) -> Dataset:
        """A data set with these images for test and none for training; the source itself is not looked for."""
        test = self.read()
        none = test.take(torch.arange(0))
        return Dataset(self.name, none, none, test, self.classes, self.port, *IMAGENET_MOMENTS, self.fingerprint)


def imagenet_r(params: ImageNets) -> Collection:
    """ImageNet-R: 30,000 renditions of 200 of the 1,000 classes, read as ImageNet's own pictures are."""
    return _collection("imagenet-r", params, None, wnids("imagenet"), wnids("r"), squash=False)


def tiny_imagenet_r(params: ImageNets) -> Collection:
    """Tiny-ImageNet-R: ImageNet-R's pictures of the 62 classes that it shares with Tiny-ImageNet.

    Each is resized to a square bicubically whatever its shape, as the published set was made. A folder
    ``tiny-imagenet-r`` in the data folder, which has these classes alone, goes before ``imagenet-r``.
    """
    own = data_home() / "tiny-imagenet-r"
    root = own if params.renditions is None and own.is_dir() else None
    return _collection("tiny-imagenet-r", params, root, wnids("tiny"), wnids("tiny", "r"), squash=True)


def _collection(
    name: str, params: ImageNets, root: Path | None, classes: tuple[str, ...], shown: tuple[str, ...], squash: bool
) -> Collection:
    if params.synthetic:
        found, content = drawn(layouts.IMAGENET_R.classes, params.size, shown), "synthetic"
        root = Path("synthetic pictures")
    else:
        root = root or place(layouts.IMAGENET_R, params.renditions)
        found, content = listed(layouts.IMAGENET_R, root, ("", ""), shown)
    numbers = {label: number for number, label in enumerate(classes)}
    files = tuple((file, numbers[found.classes[label]]) for file, label in found.test)
    listing, port = Listing(classes, (), files), Port.of("image", channels=3, size=params.size)
    resident = held(listing, port, params.resident)

    def read() -> Split:
        return splits(listing, Reader(params.size, 3, squash, params.resize), resident, name, str(root))[1]

    facts = json.dumps([name, content, params.size, *([] if params.resize is None else [params.resize])])
    return Collection(name, classes, shown, port, facts, read)
