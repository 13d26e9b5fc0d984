"""RandAugment (Cubuk et al. 2019) for small uint8 images, in batches and drawn per sample.

Every operation is one of three kinds, so that a batch needs three passes however many operations it draws: a *tone* (a
table of 256 values for each channel), a *move* (an affine map) or a *filter* (sharpness, saturation).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.data.pixels import Pixels
from modnet.data.warp import affine, resampled
from modnet.randomness import Key

TONES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "brightness", "contrast")
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
FILTERS = ("sharpness", "saturation")  # saturation does nothing to grey images and is not drawn for them
_MOST_DEGREES, _MOST_SHEAR, _MOST_SHIFT, _MOST_BLEND = 30.0, 0.3, 100 / 331, 0.9


class RandAugment(Pixels):
    """See :class:`modnet.recipe.training.RandAugment`."""

    def __init__(self, ops: int, m: float, std: float) -> None:
        self.ops, self.m, self.std = ops, m, std

    def apply(self, images: Tensor, key: Key, ids: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to the same; each sample's operations and magnitudes follow from the key and its id."""
        names = ("identity", *TONES, *MOVES, *(FILTERS if images.shape[1] == 3 else FILTERS[:1]))
        for turn in range(self.ops):
            which, level = self.draw(key.fold(turn), ids, len(names))
            for group, change in ((TONES, toned), (MOVES, moved), (FILTERS, filtered)):
                first = names.index(group[0])
                chosen = ((which >= first) & (which < first + len(group))).nonzero()[:, 0]
                if len(chosen):
                    changed = change(images[chosen], which[chosen] - first, level[chosen])
                    images = images.index_copy(0, chosen, changed)
        return images

    def draw(self, key: Key, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """For each sample the number of its operation, and its magnitude with a random sign, in -1 … 1."""
        pick, sign = key.fold("pick").uniform(ids, 2).unbind(1)
        level = (self.m + self.std * key.fold("level").normal(ids, 1)[:, 0].double()).clamp(0, 10) / 10
        level = (level * 256).round() / 256  # the last bits of a logarithm depend on the batch it is taken in
        return (pick * count).long(), torch.where(sign < 0.5, level, -level)


def toned(images: Tensor, which: Tensor, level: Tensor) -> Tensor:
    """Each image through the tone table of its operation (an index of :data:`TONES`)."""
    tables = torch.empty(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    for op, name in enumerate(TONES):
        rows = (which == op).nonzero()[:, 0]
        if len(rows):
            tables[rows] = tone_table(name, images[rows], level[rows]).expand(-1, images.shape[1], -1)
    return tables.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def tone_table(name: str, images: Tensor, level: Tensor) -> Tensor:
    """The table of an operation for each image and channel, int64 (B, C or 1, 256)."""
    values = torch.arange(256, device=images.device).view(1, 1, 256)
    amount = level.abs().view(-1, 1, 1)
    factor = 1 + _MOST_BLEND * level.view(-1, 1, 1)
    if name == "invert":
        return (255 - values).expand(len(images), 1, 256)
    if name == "posterize":  # 8 bits down to 4
        return values & ~((1 << (4 * amount).round().long()) - 1)
    if name == "solarize":
        return torch.where(values >= 256 * (1 - amount), 255 - values, values)
    if name == "autocontrast":
        low, high = images.flatten(2).amin(2, True).long(), images.flatten(2).amax(2, True).long()
        return torch.where(high > low, ((values - low) * 255 // (high - low).clamp(min=1)).clamp(0, 255), values)
    if name == "equalize":
        return _equalize(images)
    pivot = 0 if name == "brightness" else images.flatten(1).long().sum(1).view(-1, 1, 1) // images[0].numel()
    return (pivot + (values - pivot) * factor).round().clamp(0, 255).long()


def _equalize(images: Tensor) -> Tensor:
    """Histogram equalisation as PIL does it."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, True))
    step = (flat.shape[2] - last) // 255
    table = ((step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, table, torch.arange(256, device=images.device))


def moved(images: Tensor, which: Tensor, level: Tensor) -> Tensor:
    """Each image moved by its operation (an index of :data:`MOVES`); what comes in is black."""
    height, width = images.shape[2:]
    op = {name: which == position for position, name in enumerate(MOVES)}
    angle = torch.where(op["rotate"], level * math.radians(_MOST_DEGREES), 0.0)
    shear_x, shear_y = (torch.where(op[name], level * _MOST_SHEAR, 0.0) for name in ("shear_x", "shear_y"))
    shift_x = torch.where(op["translate_x"], level * _MOST_SHIFT * width, 0.0)
    shift_y = torch.where(op["translate_y"], level * _MOST_SHIFT * height, 0.0)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, shear_x - sin, shift_x], 1), torch.stack([sin + shear_y, cos, shift_y], 1)]
    return resampled(images, *affine(torch.stack(rows, 1), height, width))


def filtered(images: Tensor, which: Tensor, level: Tensor) -> Tensor:
    """Each image blended with its smoothed (sharpness) or grey (saturation) version, or away from it."""
    values = images.long()
    smooth = F.avg_pool2d(images.double(), 3, 1, divisor_override=1).round().long()  # sums of nine, exact
    centre = values[:, :, 1:-1, 1:-1]
    plain = values.clone()
    plain[:, :, 1:-1, 1:-1] = (smooth + 4 * centre + 6) // 13
    if images.shape[1] == 3:
        weights = torch.tensor([299, 587, 114], device=images.device).view(1, 3, 1, 1)
        grey = ((values * weights).sum(1, keepdim=True) + 500) // 1000
        plain = torch.where((which == FILTERS.index("saturation")).view(-1, 1, 1, 1), grey, plain)
    factor = 1 + _MOST_BLEND * level.view(-1, 1, 1, 1)
    return (plain + (values - plain) * factor).round().clamp(0, 255).to(torch.uint8)
