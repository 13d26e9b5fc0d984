"""Resampling of uint8 images in integers: the same bits on every machine and in every batch.

Positions are fixed-point: int64 in units of 1 / 65536 pixel; a value is weighed between four pixels
in steps of 1/256.
"""

from __future__ import annotations

import torch
from torch import Tensor

ONE = 1 << 16  # one pixel
_STEP = 1 << 8  # one step of a weight, and the number of steps


def resampled(images: Tensor, down: Tensor, right: Tensor, edge: bool = False) -> Tensor:
    """Bilinear values of uint8 images (B, C, H, W) at fixed-point rows and columns (B, H', W').

    Outside is black, or with ``edge`` the nearest pixel of the border.
    """
    (height, width), flat = images.shape[2:], images.flatten(2).to(torch.int32)
    top, left = down >> 16, right >> 16
    low, aside = ((v & (ONE - 1)) // _STEP for v in (down, right))
    total = torch.zeros(1, dtype=torch.int32, device=images.device)
    for rows, weight_down in ((top, _STEP - low), (top + 1, low)):
        for columns, weight_right in ((left, _STEP - aside), (left + 1, aside)):
            weight = weight_down * weight_right
            if not edge:
                weight = weight * ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))
            place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
            values = flat.gather(2, place.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
            total = total + values * weight.flatten(1)[:, None].to(torch.int32)
    return ((total + ONE // 2) >> 16).to(torch.uint8).view(*images.shape[:2], *down.shape[1:])


def affine(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Fixed-point rows and columns (B, H, W) that matrices (B, 2, 3) send each pixel to.

    A matrix acts on (column, row, 1) measured from the image's centre, in pixels, and gives where
    to read.
    """
    fixed = (matrices.double() * ONE).round().long()
    # doubled offsets from the centre are whole numbers, so that nothing is rounded
    rows = torch.arange(height, device=matrices.device)[:, None] * 2 - (height - 1)
    columns = torch.arange(width, device=matrices.device)[None, :] * 2 - (width - 1)

    def line(row: Tensor, length: int) -> Tensor:
        across, along, offset = (row[:, i].view(-1, 1, 1) for i in range(3))
        return ((across * columns + along * rows + (length - 1) * ONE) >> 1) + offset

    return line(fixed[:, 1], height), line(fixed[:, 0], width)
