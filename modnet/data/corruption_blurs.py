"""The four blurs of the suite ``-c``: defocus, frosted glass, motion and zoom, in whole numbers."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from modnet.data import exact
from modnet.data.shift_table import severity_of, shift_key

DIRECTIONS = 16  # of motion, over half a turn
_FINE = 16  # points to a pixel's side where a kernel's edge crosses it
_ZOOMS = 6


def defocus_blur(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """The mean over a disk."""
    radius = severity_of("defocus_blur", "share", severity) * images.shape[-1]
    return exact.as_images(exact.filtered(images.to(torch.int32), disk(radius)))


@functools.cache
def disk(radius: float) -> tuple[tuple[int, ...], ...]:
    """How many of a pixel's 16 x 16 points lie within the disk; a disk smaller than a pixel is half a pixel."""
    radius = max(radius, 0.5)
    reach = math.ceil(radius - 0.5)
    points = [(p - (_FINE - 1) / 2) / _FINE for p in range(_FINE)]
    span = range(-reach, reach + 1)
    return tuple(
        tuple(sum((y + v) ** 2 + (x + u) ** 2 <= radius**2 for v in points for u in points) for x in span) for y in span
    )


def glass_blur(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """Some pixels are read from a random place near them, then all are smoothed a little."""
    height, width = images.shape[2:]
    reach = exact.pixels(severity_of("glass_blur", "share", severity), width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    share = round(65536 * severity_of("glass_blur", "pixels", severity))
    for turn in range(int(severity_of("glass_blur", "rounds", severity))):
        draw = exact.noise(shift_key("glass_blur").fold(turn), ids, (height, width))
        moves = ((draw >> 32) & 0xFFFF) < share
        down, right = (((draw >> bits) & 0xFFFF) % (2 * reach + 1) - reach for bits in (0, 16))
        down = (rows + down * moves).clamp(0, height - 1)
        right = (columns + right * moves).clamp(0, width - 1)
        place = (down * width + right).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        images = images.flatten(2).gather(2, place).view_as(images)
    return exact.as_images(exact.blurred(images.to(torch.int32), (1, 4, 1)))


def motion_blur(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """The mean along a line, whose direction is drawn for each sample."""
    length = severity_of("motion_blur", "share", severity) * images.shape[-1]
    return exact.as_images(smeared(images.to(torch.int32), directions("motion_blur", ids), length))


def directions(name: str, ids: Tensor) -> Tensor:
    """The number of each sample's direction, 0 … 15."""
    return (exact.noise(shift_key(name).fold("direction"), ids, (1,))[:, 0] & 0xFFFF) % DIRECTIONS


def smeared(values: Tensor, ways: Tensor, length: float) -> Tensor:
    """The mean along a line of ``length`` pixels in each sample's direction; samples of one direction go together."""
    result = torch.empty_like(values)
    for way in ways.unique().tolist():
        rows = (ways == way).nonzero()[:, 0]
        result[rows] = exact.filtered(values[rows], line(length, way))
    return result


@functools.cache
def line(length: float, way: int) -> tuple[tuple[int, ...], ...]:
    """Points along a line through the middle, each shared among the four pixels around it."""
    reach = math.ceil(max(length - 1, 0) / 2 + 0.5)
    down, right = math.sin(math.pi * way / DIRECTIONS), math.cos(math.pi * way / DIRECTIONS)
    count = max(1, math.ceil(4 * length))
    weights = [[0.0] * (2 * reach + 1) for _ in range(2 * reach + 1)]
    for point in range(count):
        along = ((point + 0.5) / count - 0.5) * max(length - 1, 0)
        y, x = along * down + reach, along * right + reach
        top, left = min(int(y), 2 * reach - 1), min(int(x), 2 * reach - 1)
        for row, share in ((top, 1 - (y - top)), (top + 1, y - top)):
            weights[row][left] += share * (1 - (x - left))
            weights[row][left + 1] += share * (x - left)
    return tuple(tuple(round(weight * 64) for weight in row) for row in weights)


def zoom_blur(images: Tensor, ids: Tensor, severity: int) -> Tensor:
    """The mean of six zooms about the middle, the first being the image itself."""
    most = severity_of("zoom_blur", "zoom", severity)
    height, width = images.shape[2:]
    values = images.double()
    total = torch.zeros_like(values)
    for step in range(_ZOOMS):
        zoom = 1 + (most - 1) * step / (_ZOOMS - 1)
        total += _zoomed(height, zoom) @ values @ _zoomed(width, zoom).T
    return exact.as_images(exact.divided(total.long(), _ZOOMS * 65536))


@functools.cache
def _zoomed(size: int, zoom: float) -> Tensor:
    """The matrix (size, size), in units of 1 / 256, that reads a row of pixels enlarged about its middle."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for pixel in range(size):
        place = round(256 * ((pixel - (size - 1) / 2) / zoom + (size - 1) / 2))
        left = min(place >> 8, size - 2)
        matrix[pixel, left] += 256 - (place - (left << 8))
        matrix[pixel, left + 1] += place - (left << 8)
    return matrix
