"""Resampling of uint8 images in integers: the same bits on every machine and in every batch.

Positions are fixed-point: int64 in units of 1 / 65536 pixel; a value is weighed between four pixels in steps of 1/256.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ONE = 1 << 16  # one pixel


def resampled(images: Tensor, down: Tensor, right: Tensor, edge: bool = False) -> Tensor:
    """Bilinear values of uint8 images (B, C, H, W) at fixed-point rows and columns (B, H', W').

    Outside is black, or with ``edge`` the nearest pixel of the border.
    """
    (height, width), channels = images.shape[2:], images.shape[1]
    out = 0 if edge else 1  # how far beyond the border a position may lie, where all is black
    down = down.clamp(-out * ONE, (height - 1 + out) * ONE)
    right = right.clamp(-out * ONE, (width - 1 + out) * ONE)
    framed = F.pad(images, (1, 2, 1, 2)).to(torch.int32).flatten(2)
    first = ((down >> 16) + 1) * (width + 3) + ((right >> 16) + 1)
    below, beside = (((v >> 8) & 255).to(torch.int32).flatten(1)[:, None] for v in (down, right))

    def row(place: Tensor) -> Tensor:
        place = place.flatten(1)[:, None].expand(-1, channels, -1)
        left = framed.gather(2, place)
        return (left << 8).add_(framed.gather(2, place + 1).sub_(left).mul_(beside))

    upper = row(first)
    total = (upper << 8).add_(row(first + width + 3).sub_(upper).mul_(below))
    return (total.add_(ONE // 2) >> 16).to(torch.uint8).view(*images.shape[:2], *down.shape[1:])


def affine(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Fixed-point rows and columns (B, H, W) that matrices (B, 2, 3) send each pixel to.

    A matrix acts on (column, row, 1) measured from the image's centre, in pixels, and gives where to read.
    """
    fixed = (matrices.double() * ONE).round().long()
    # doubled offsets from the centre are whole numbers, so that nothing is rounded
    rows = torch.arange(height, device=matrices.device)[:, None] * 2 - (height - 1)
    columns = torch.arange(width, device=matrices.device)[None, :] * 2 - (width - 1)

    def line(row: Tensor, length: int) -> Tensor:
        across, along, offset = (row[:, i].view(-1, 1, 1) for i in range(3))
        return ((across * columns + along * rows + (length - 1) * ONE) >> 1) + offset

    return line(fixed[:, 1], height), line(fixed[:, 0], width)
