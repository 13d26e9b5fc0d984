"""Drawn pictures that stand in for a published set which is not at hand: of its shape and classes, without meaning.

Blurred patches of colour, alike within a class, in a few classes alone, so that a recipe can be tried from its first
stage to its table in seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import torch
from PIL import Image

from modnet.data.folder import Listing
from modnet.randomness import Key

SHOWN, TRAIN, TEST = 16, 7, 15  # classes with pictures, and pictures of each: enough for an episode of 5 shots
_PATCHES, _OWN = 4, 0.3
_KEY = Key.of(20_261_125, "drawn")


@dataclass(frozen=True)
class Drawn:
    """A picture that is drawn when it is opened; what it shows depends on its class, part and number alone."""

    label: str
    part: str
    number: int
    size: int

    def __str__(self) -> str:
        return f"drawn {self.part}/{self.label}/{self.number}"

    def open(self) -> IO[bytes]:
        """The encoded picture, half as wide again as it is high."""
        both = _patches(_KEY.fold(self.label)), _patches(_KEY.fold(self.label, self.part, self.number))
        pixels = torch.lerp(*both, _OWN).round().to(torch.uint8)
        file = io.BytesIO()
        shape = (self.size * 3 // 2, self.size)
        Image.fromarray(pixels.numpy()).resize(shape, Image.Resampling.BICUBIC).save(file, "BMP")
        file.seek(0)
        return file


def _patches(key: Key) -> torch.Tensor:
    return 255 * key.uniform(torch.arange(_PATCHES), 3 * _PATCHES).view(_PATCHES, _PATCHES, 3)


def drawn(classes: Sequence[str], size: int, among: Sequence[str] = ()) -> Listing:
    """Drawn pictures of 16 of a set's classes (of those ``among``), 7 of each to train and 15 to test."""
    every = tuple(among) or classes
    shown = [every[i * len(every) // SHOWN] for i in range(SHOWN)]
    train, test = (
        tuple((Drawn(label, part, i, size), classes.index(label)) for label in shown for i in range(count))
        for part, count in (("train", TRAIN), ("test", TEST))
    )
    return Listing(tuple(classes), train, test)
