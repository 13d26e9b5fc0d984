"""The two kinds of weather of the suite ``-c``, snow and fog, in whole numbers; frost needs photographs."""

from __future__ import annotations

import torch
from torch import Tensor

from modnet.data import exact
from modnet.data.corruption_blurs import DIRECTIONS, smeared
from modnet.data.shift_table import severity_of, shift_key

_FLAKE, _FALL = 0.036, 0.11  # side of a flake and length of its fall, as shares of the image's side
_SLANTS = (DIRECTIONS // 4, DIRECTIONS // 2, 3 * DIRECTIONS // 4)  # directions that snow falls in
_OCTAVES = ((3, 8), (5, 4), (9, 2), (17, 1))  # grid of points and weight of each layer of fog


def snow(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """The scene whitens, and flakes fall through it in one of three directions."""
    height, width = images.shape[2:]
    key = shift_key("snow")
    side = exact.pixels(_FLAKE, width)
    draw = exact.noise(key, ids, (1, -(-height // side), -(-width // side)))
    share = round(65536 * severity_of("snow", "pixels", severity))
    flakes = torch.where((draw & 0xFFFF) < share, 255 + ((draw >> 16) & 0xFF), 0).to(torch.int32)
    flakes = flakes.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]
    slant = torch.tensor(_SLANTS)[(exact.noise(key.fold("slant"), ids, (1,))[:, 0] & 0xFFFF) % 3]
    flakes = smeared(flakes, slant, max(1.0, _FALL * width))
    whiten = round(256 * severity_of("snow", "whiten", severity))
    values = images.to(torch.int32)
    white = torch.maximum(values, exact.divided(3 * exact.grey(images), 2) + 128)
    return exact.as_images(exact.divided((256 - whiten) * values + whiten * white, 256) + flakes)


def fog(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """A bank of uneven light lies over the image."""
    height, width = images.shape[2:]
    bank = torch.zeros(len(ids), height, width, dtype=torch.int64)
    for points, weight in _OCTAVES:
        grid = exact.noise(shift_key("fog").fold(points), ids, (points, points)) & 0xFF
        bank += weight * exact.stretched(grid, height, width)
    light = 128 + exact.divided(bank, 65536 * 2 * sum(w for _, w in _OCTAVES))[:, None]
    opacity = round(256 * severity_of("fog", "opacity", severity))
    return exact.as_images(exact.divided((256 - opacity) * images.long() + opacity * light, 256))
