"""Images to tokens by the first stages of a ConvNeXt, with a learned grid of positions beside the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.layers.initialise import initialise_linear

EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every pixel: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 × 7, norm, a perceptron four times as wide, layer scale, residual (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


class ConvNeXtTokenizer(nn.Module):
    """Images (B, C, H, W) to tokens (B, h·w, last width + grid channels), row by row, grid channels last.

    Stage i has ``depths[i]`` blocks of ``widths[i]`` channels; the first reduces the image ``patch`` times, each other
    one twice. ``grid`` (channels, h, w) is a table of positions that is joined to the features; it must have the size
    of the feature map, else ValueError. Source: NAC (arXiv 2210.08031), image tokenizer.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        grid: tuple[int, int, int] | None,
        patch: int = 4,
    ) -> None:
        super().__init__()
        self.downs, self.stages = nn.ModuleList(), nn.ModuleList()
        for place, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if place == 0:
                down = nn.Sequential(nn.Conv2d(channels, width, patch, stride=patch), ChannelNorm(width))
            else:
                down = nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, width, 2, stride=2))
            self.downs.append(down)
            self.stages.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
            channels = width
        self.grid = nn.Parameter(torch.randn(grid)) if grid is not None else None
        for part in self.modules():
            if isinstance(part, nn.Linear):
                initialise_linear(part)
            elif isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> Tensor:
        """The last stage's feature map (B, width, h, w)."""
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to tokens (B, h w, width + positions); raises ValueError off the grid's size."""
        found = self.features(x)
        if self.grid is not None:
            if self.grid.shape[1:] != found.shape[2:]:
                raise ValueError(
                    f"the positional grid is {tuple(self.grid.shape[1:])}, but images of {tuple(x.shape[2:])} pixels "
                    f"give {tuple(found.shape[2:])} tokens"
                )
            found = torch.cat([found, self.grid.expand(len(x), -1, -1, -1)], dim=1)
        return found.flatten(2).transpose(1, 2)
