"""The suite ``-r``: eight renditions that change an image's style and keep what it shows.

Each takes uint8 images (B, C, H, W) and their ids, and gives uint8 images of the same shape. Only ``texture`` draws
random numbers. Line widths and periods grow with the image's side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modnet.data import exact
from modnet.data.shift_table import RENDITIONS as CONSTANTS
from modnet.data.shift_table import shift_key
from modnet.randomness import Key

_DIRECTIONS = ((0, 4), (4, 0), (3, 3), (3, -3), (2, 4), (4, 2), (2, -4), (4, -2))


def sketch(images: Tensor, ids: Tensor) -> Tensor:
    """A pencil drawing: each pixel against its surroundings, so that flat regions are paper and edges are lines."""
    radius, floor = (exact.pixels(_number("sketch", "radius"), images.shape[-1]), int(_number("sketch", "floor")))
    light = exact.grey(images)
    around = exact.blurred(light, _hill(radius))
    return _same(images, torch.div(255 * (light + floor), around + floor, rounding_mode="floor"))


def emboss(images: Tensor, ids: Tensor) -> Tensor:
    """A relief lit from the upper left: the slope of the light, on mid grey."""
    reach = exact.pixels(_number("emboss", "reach"), images.shape[-1])
    light = exact.grey(images).float()
    padded = torch.nn.functional.pad(light, (reach,) * 4, mode="replicate").to(torch.int32)
    slope = padded[:, :, 2 * reach :, 2 * reach :] - padded[:, :, : -2 * reach, : -2 * reach]
    return _same(images, 128 + exact.divided(slope, 2))


def poster(images: Tensor, ids: Tensor) -> Tensor:
    """A print in four tones: each channel's range in four steps, given tones that do not rise in order."""
    tones = torch.tensor(_tuple("poster", "tones"), dtype=torch.uint8)
    radius = exact.pixels(_number("poster", "smooth"), images.shape[-1], least=0)
    values = exact.blurred(images.to(torch.int32), _hill(radius))
    low, high = values.amin((2, 3), True), values.amax((2, 3), True)
    step = torch.div(4 * (values - low), high - low + 1, rounding_mode="floor")
    return tones[step.long()]


def silhouette(images: Tensor, ids: Tensor) -> Tensor:
    """The object as a black shape on white: what differs from the border's median light."""
    light = exact.grey(images)
    border = torch.cat([light[..., 0, :], light[..., -1, :], light[..., :, 0], light[..., :, -1]], -1)
    apart = (light - border.median(-1).values[..., None, None]).abs()
    least = exact.divided(exact.otsu(apart) * int(8 * _number("silhouette", "threshold")), 8)
    ink, paper = int(_number("silhouette", "ink")), int(_number("silhouette", "paper"))
    return _same(images, torch.where(apart > least.view(-1, 1, 1, 1), ink, paper))


def halftone(images: Tensor, ids: Tensor) -> Tensor:
    """Newspaper dots: black and white alone, dark tones lifted, on a screen turned by 45 degrees."""
    height, width = images.shape[2:]
    period = exact.pixels(_number("halftone", "period"), width, least=3)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    wave = [(2 * (v % period) - period).abs() for v in (rows + columns, rows - columns)]
    threshold = exact.divided(255 * (wave[0] + wave[1] + 1), 2 * period + 2)
    values = images.to(torch.int32)
    return ((exact.divided(values * (765 - values), 510) > threshold) * 255).to(torch.uint8)


def inverted(images: Tensor, ids: Tensor) -> Tensor:
    """The photographic negative."""
    return 255 - images


def stroke(images: Tensor, ids: Tensor) -> Tensor:
    """Bright outlines on black, within the object: how far the darkest neighbour lies below each pixel."""
    radius = exact.pixels(_number("stroke", "radius"), images.shape[-1])
    light = exact.grey(images)
    edges = light - exact.smallest(light, radius)
    return _same(images, exact.divided(edges * int(4 * _number("stroke", "gain")), 4))


def texture(images: Tensor, ids: Tensor) -> Tensor:
    """Other material: bright regions become stripes of one direction per image, dark ones become coarse grain."""
    key = shift_key("texture")
    bright, dark = (_tuple("texture", name) for name in ("bright", "dark"))
    stripes = _stripes(key.fold("stripes"), ids, images.shape[2:])
    grain = _grain(key.fold("grain"), ids, images.shape[2:])
    light = torch.where(stripes, bright[1], bright[0])[:, None]
    shade = torch.where(grain, dark[1], dark[0])[:, None]
    gain = int(4 * _number("texture", "gain"))
    values = exact.divided(images.to(torch.int32) * gain, 4).clamp(max=255)
    return exact.as_images(exact.divided(light * values + shade * (255 - values), 255))


def _stripes(key: Key, ids: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    period = exact.pixels(_number("texture", "period"), width, least=3)
    draw = key.bits(ids, 2)
    ways = torch.tensor(_DIRECTIONS)[(draw[:, 0] & 255) % len(_DIRECTIONS)]
    down, right = (ways[:, i].view(-1, 1, 1) for i in (0, 1))
    along = down * torch.arange(height)[:, None] + right * torch.arange(width)
    phase = ((draw[:, 1] & 255) % (4 * period)).view(-1, 1, 1)
    return (along + phase) % (4 * period) < 2 * period


def _grain(key: Key, ids: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    cell = exact.pixels(_number("texture", "cell"), width)
    coarse = exact.noise(key, ids, (-(-height // cell), -(-width // cell))) & 1
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width].bool()


def _hill(radius: int) -> list[int]:
    """Weights that fall linearly from the middle."""
    return [radius + 1 - abs(i) for i in range(-radius, radius + 1)]


def _same(images: Tensor, values: Tensor) -> Tensor:
    """Grey values as images with as many channels."""
    return exact.as_images(values).expand_as(images).contiguous()


def _number(name: str, constant: str) -> float:
    value = CONSTANTS[name][constant]
    assert not isinstance(value, tuple)
    return value


def _tuple(name: str, constant: str) -> tuple[int, ...]:
    value = CONSTANTS[name][constant]
    assert isinstance(value, tuple)
    return value


RENDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f.__name__: f for f in (sketch, emboss, poster, silhouette, halftone, inverted, stroke, texture)
}
