"""Image operations in whole numbers, so that a result is the same bits on every machine and thread count.

Values are int32 (B, C, H, W) unless said otherwise. Sums and products of whole numbers are exact in any order;
divisions round half up.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.randomness import Key

Kernel = Sequence[Sequence[int]]


def pixels(share: float, size: int, least: int = 1) -> int:
    """A length given as a share of the side, in whole pixels, at least ``least``."""
    return max(least, int(share * size + 0.5))


def divided(values: Tensor, by: Tensor | int) -> Tensor:
    """Quotient of integers, rounded half up."""
    return torch.div(2 * values + by, 2 * by, rounding_mode="floor")


def as_images(values: Tensor) -> Tensor:
    """Integers clipped to 0 … 255, as uint8."""
    return values.clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Luminance of uint8 images, int32 (B, 1, H, W)."""
    values = images.to(torch.int32)
    if images.shape[1] == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return divided(299 * red + 587 * green + 114 * blue, 1000)


def blurred(values: Tensor, weights: Sequence[int]) -> Tensor:
    """The values filtered by the same odd row of weights down and across, borders repeated."""
    total, reach = sum(weights), len(weights) // 2
    height, width = values.shape[2:]
    rows = F.pad(values.float(), (0, 0, reach, reach), mode="replicate").to(torch.int32)
    down = sum(weight * rows[:, :, i : i + height] for i, weight in enumerate(weights))
    columns = F.pad(torch.as_tensor(down).double(), (reach, reach, 0, 0), mode="replicate").to(torch.int64)
    across = sum(weight * columns[:, :, :, i : i + width] for i, weight in enumerate(weights))
    return divided(torch.as_tensor(across), total * total).to(torch.int32)


def filtered(values: Tensor, kernel: Kernel) -> Tensor:
    """The weighted sum over each pixel's neighbours (odd kernel, borders repeated), divided by the weights' sum."""
    tall, wide = len(kernel), len(kernel[0])
    height, width = values.shape[2:]
    reach = (wide // 2, wide // 2, tall // 2, tall // 2)
    padded = F.pad(values.float(), reach, mode="replicate").to(torch.int32)
    total = torch.zeros_like(values)
    for i, row in enumerate(kernel):
        for j, weight in enumerate(row):
            if weight:
                total += weight * padded[:, :, i : i + height, j : j + width]
    return divided(total, sum(map(sum, kernel)))


def largest(values: Tensor, radius: int) -> Tensor:
    """The largest value within a square of ``radius``."""
    return F.max_pool2d(values.float(), 2 * radius + 1, 1, radius).to(torch.int32)


def smallest(values: Tensor, radius: int) -> Tensor:
    """The smallest value within a square of ``radius``."""
    return -largest(-values, radius)


def otsu(values: Tensor) -> Tensor:
    """For each grey image the threshold that best parts dark from bright (Otsu 1979), int64 (B,)."""
    flat = values.flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.int64).scatter_add_(1, flat, torch.ones_like(flat))
    below, level = counts.cumsum(1), (counts * torch.arange(256)).cumsum(1)
    above = flat.shape[1] - below
    apart = (level * flat.shape[1] - below * level[:, -1:]).double() ** 2 / (below * above).clamp(min=1)
    return apart.argmax(1)


@functools.cache
def quantiles() -> Tensor:
    """The 4,096 middle quantiles of a standard normal, in units of 1 / 4096, int64."""
    normal = statistics.NormalDist()
    return torch.tensor([round(4096 * normal.inv_cdf((i + 0.5) / 4096)) for i in range(4096)])


def normal(key: Key, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for each sample and place in units of 1 / 4096, int64 (B, *shape)."""
    return quantiles()[noise(key, ids, shape) & 4095]


def stretched(grid: Tensor, height: int, width: int) -> Tensor:
    """A coarse grid (B, h, w), at least 2 x 2, drawn out bilinearly to (B, H, W), corners kept.

    In units of 1 / 65536.
    """
    down, across = _between(grid.shape[1], height), _between(grid.shape[2], width)
    return (down @ grid.double() @ across.T).long()


def _between(few: int, many: int) -> Tensor:
    """The matrix (many, few), in units of 1 / 256, that interpolates between evenly spaced points."""
    place = divided(torch.arange(many) * (few - 1) * 256, max(many - 1, 1))
    left = (place >> 8).clamp(max=few - 2)
    weight = place - (left << 8)
    matrix = torch.zeros(many, few, dtype=torch.float64)
    matrix[torch.arange(many), left] = (256 - weight).double()
    matrix[torch.arange(many), left + 1] = weight.double()
    return matrix


def noise(key: Key, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Random bits for each sample and place, int64 (B, *shape)."""
    return key.bits(ids, math.prod(shape)).view(len(ids), *shape)
