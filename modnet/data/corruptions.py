"""The suite ``-c``: common corruptions at 5 severities (Hendrycks & Dietterich 2019), scaled to small images.

14 of the 15 kinds. *Frost* is left out: it pastes photographs of frost, which are not ours to ship. The constants are
our own (:mod:`modnet.data.shift_table`); so numbers cannot be compared with those published for CIFAR-10-C. All
arithmetic is in whole numbers. A kind draws the same random numbers at each severity.
"""

from __future__ import annotations

import functools
import math
from typing import Protocol

import torch
from torch import Tensor

from modnet.data import exact
from modnet.data.corruption_blurs import defocus_blur, glass_blur, motion_blur, zoom_blur
from modnet.data.corruption_weather import fog, snow
from modnet.data.jpeg import jpeg_compression
from modnet.data.shift_table import severity_of, shift_key
from modnet.data.warp import ONE, affine, resampled

SEVERITIES = (1, 2, 3, 4, 5)
_UNITS = 1 << 12  # shares and factors are rounded to whole multiples of 1 / 4096
_PHOTON_STEPS = 1 << 10


def gaussian_noise(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Normal noise on each value."""
    deviation = round(255 * _UNITS * severity_of("gaussian_noise", "deviation", severity))
    noise = exact.normal(shift_key("gaussian_noise"), ids, images.shape[1:])
    return exact.as_images(images + exact.divided(noise * deviation, 4096 * _UNITS))


def shot_noise(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Each value becomes a Poisson count of the photons that it stands for."""
    table = _poisson(severity_of("shot_noise", "photons", severity))
    draw = exact.noise(shift_key("shot_noise"), ids, images.shape[1:]) & (_PHOTON_STEPS - 1)
    return table[images.long() * _PHOTON_STEPS + draw]


@functools.cache
def _poisson(photons: float) -> Tensor:
    """For each value 0 … 255 the 1,024 middle quantiles of its count, as values again; uint8 (256 * 1024,)."""
    levels = (torch.arange(_PHOTON_STEPS, dtype=torch.float64) + 0.5) / _PHOTON_STEPS
    rows = []
    for value in range(256):
        mean = value / 255 * photons
        chance, total, below = math.exp(-mean), 0.0, []
        for count in range(int(mean + 8 * math.sqrt(mean)) + 8):
            total += chance
            below.append(total)
            chance *= mean / (count + 1)
        counts = torch.searchsorted(torch.tensor(below, dtype=torch.float64), levels)
        rows.append((counts * 255 / photons + 0.5).floor().clamp(max=255).to(torch.uint8))
    return torch.cat(rows)


def impulse_noise(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Salt and pepper: some values turn black or white."""
    share = round(65536 * severity_of("impulse_noise", "pixels", severity))
    draw = exact.noise(shift_key("impulse_noise"), ids, images.shape[1:])
    return torch.where((draw & 65535) < share, ((draw >> 16) & 1) * 255, images).to(torch.uint8)


def brightness(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """A constant is added to every value."""
    return exact.as_images(images.to(torch.int32) + round(255 * severity_of("brightness", "lift", severity)))


def contrast(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Values move towards their channel's mean."""
    factor = round(_UNITS * severity_of("contrast", "factor", severity))
    values = images.to(torch.int64)
    mean = exact.divided(values.sum((2, 3), keepdim=True), values[0, 0].numel())
    return exact.as_images(mean + exact.divided((values - mean) * factor, _UNITS))


def elastic_transform(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """The plane is bent: points of a 5 x 5 grid move at random, and what lies between follows."""
    height, width = images.shape[2:]
    reach = severity_of("elastic_transform", "share", severity)
    places = affine(torch.eye(3)[None, :2], height, width)
    moved = []
    for axis, (place, length) in enumerate(zip(places, (height, width), strict=True)):
        grid = exact.normal(shift_key("elastic_transform").fold(axis), ids, (5, 5)).clamp(-8192, 8192)
        way = exact.stretched(grid, height, width)  # in 1 / 65536 of 1 / 4096
        moved.append(place + exact.divided(way * round(reach * length * _UNITS), 4096 * _UNITS))
    assert ONE == 65536
    return resampled(images, moved[0], moved[1], edge=True)


def pixelate(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Fewer pixels: areas are averaged, then drawn large again."""
    factor = severity_of("pixelate", "factor", severity)
    sides = [max(1, int(length * factor + 0.5)) for length in images.shape[2:]]
    down, across = (_areas(length, side) for length, side in zip(images.shape[2:], sides, strict=True))
    total = (down @ images.double() @ across.T).long()
    small = exact.divided(total, images.shape[2] * images.shape[3])
    rows, columns = (torch.arange(n) * side // n for n, side in zip(images.shape[2:], sides, strict=True))
    return exact.as_images(small[:, :, rows][:, :, :, columns])


def _areas(many: int, few: int) -> Tensor:
    """How much of each of ``many`` pixels lies in each of ``few``: whole numbers, rows that sum to ``many``."""
    big, little = torch.arange(few)[:, None] * many, torch.arange(many)[None, :] * few
    overlap = torch.minimum(big + many, little + few) - torch.maximum(big, little)
    return overlap.clamp(min=0).double()


class Corruption(Protocol):
    """A kind of corruption: uint8 images (B, C, H, W) and ids (B,) to uint8 images as large."""

    __name__: str

    def __call__(self, images: Tensor, ids: Tensor, severity: int) -> Tensor: ...


_KINDS: tuple[Corruption, ...] = (
    gaussian_noise,
    shot_noise,
    impulse_noise,
    defocus_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
    snow,
    fog,
    brightness,
    contrast,
    elastic_transform,
    pixelate,
    jpeg_compression,
)
CORRUPTIONS: dict[str, Corruption] = {kind.__name__: kind for kind in _KINDS}
