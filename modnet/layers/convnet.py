"""Leaves of small convolutional networks: a stem, residual blocks on ever coarser maps, and a classifier.

After what the speed runs on CIFAR-10 found (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv 2404.00498): few
wide layers, an early loss of resolution, batch statistics. Maps lie in memory channels last, in which convolutions are
fastest on a CPU.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.adapters import maps
from modnet.layers.drop_path import survival

Pool = Literal["mean", "flat"]


def cells(size: int, cell: int) -> int:
    """How many cells of ``cell`` pixels a side of ``size`` pixels has; the last one may be partial."""
    return -(-size // cell)


class ConvUnit(nn.Module):
    """A 3 x 3 convolution, batch norm and ReLU: maps (B, given, H, W) to (B, width, H, W)."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class CellStem(Module):
    """Images (B, C, S, S) to maps (B, width, S/cell, S/cell): the pixels of a cell are the channels of a convolution.

    So each output sees 3 x 3 cells, and no map of the images' own resolution is ever made. Raises RequestError if
    ``cell`` does not divide ``size``.
    """

    role = "stem"

    def __init__(self, channels: int, size: int, width: int, cell: int = 2) -> None:
        super().__init__()
        if size % cell:
            fitting = [c for c in range(1, size + 1) if size % c == 0]
            raise RequestError(
                f"images of {size} x {size} pixels do not divide into cells of {cell}; "
                f"cells that do: {', '.join(map(str, fitting))}"
            )
        side = size // cell
        self.takes, self.gives = Port.of("image", channels=channels, size=size), maps(width, (side, side))
        self.cell = cell
        self.unit = ConvUnit(channels * cell**2, width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        x = F.pixel_unshuffle(x, self.cell).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.unit(x)
        return out


class ConvBlock(Module):
    """Maps (B, given, H, W) to (B, width, H/shrink, W/shrink): a transition, then a residual branch of ``convs`` units.

    The transition takes the largest of ``shrink`` x ``shrink`` cells and widens; it is left out where it would change
    nothing. ``size``: the side of the network's images, and ``cell`` that of a cell of the maps taken, in pixels; both
    are only declared in the ports. ``drop_path``: the probability that a sample skips the branch while training.
    """

    role = "block"

    def __init__(
        self, given: int, width: int, size: int, cell: int, shrink: int = 1, convs: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        before, after = cells(size, cell), cells(size, cell * shrink)
        self.takes, self.gives = maps(given, (before, before)), maps(width, (after, after))
        self.shrink, self.drop_path = shrink, drop_path
        self.widen = ConvUnit(given, width) if (given, shrink) != (width, 1) else None
        self.branch = nn.Sequential(*(ConvUnit(width, width) for _ in range(convs)))

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Maps to maps; in training a sample may skip the branch."""
        if self.shrink > 1:
            x = F.max_pool2d(x, self.shrink, ceil_mode=True)
        if self.widen is not None:
            x = self.widen(x)
        if not self.branch:
            return x
        factor = survival(self, self.drop_path, x, ctx, branches=1)
        given: Tensor = self.branch(x)
        return x + given if factor is None else x + factor[0] * given

    def matrices(self) -> dict[str, int]:
        """Every kernel is a matrix."""
        return {name: 1 for name, p in self.named_parameters() if p.ndim == 4}


class MapHead(Module):
    """A linear classifier of maps (B, width, H, W), of their ``mean`` or of all cells (``flat``): logits (B, classes).

    ``flat`` knows where a feature is, which helps where pictures are centred.
    """

    role = "head"

    def __init__(self, width: int, classes: int, size: int, cell: int, pool: Pool = "mean") -> None:
        super().__init__()
        side = cells(size, cell)
        self.takes = maps(width, (side, side))
        self.gives = Port.of("logits", classes=classes, per="image")
        self.pool = pool
        self.head = nn.Linear(width * (side**2 if pool == "flat" else 1), classes)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Maps to logits; the gradient of either pooling lies channels last as well, else all behind it is slow."""
        if self.pool == "mean":
            x = F.avg_pool2d(x, x.shape[2:])
        logits: Tensor = self.head(x.permute(0, 2, 3, 1).flatten(1))
        return logits
