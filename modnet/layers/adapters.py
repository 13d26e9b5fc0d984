"""Adapters: leaves without parameters that make images or features fit a network that was built for others.

An :class:`InputAdapter` stands in front of a network; :class:`MapsToTokens`, :class:`TokensToMaps` and
:class:`Resample` stand between a stitch and a network whose features are laid out otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain, Module, Pass, Port
from modnet.errors import RequestError

Grid = tuple[int, int]
Moments = tuple[float, ...]
Filter = Literal["bilinear", "bicubic"]


class InputAdapter(Module):
    """Images (B, channels, size, size) to (B, gives_channels, gives_size, gives_size) in another normalisation.

    Pixels are resized by ``filter`` (antialiased, ``align_corners`` off); one channel is repeated, several become one
    by their mean. ``mean``, ``std``: those that the data were normalised by, ``gives_mean``, ``gives_std``: those that
    the network was trained with, one number a channel, of pixels from 0 to 1; where either is None, nothing is
    normalised. What is equal on both sides is passed on untouched. Raises RequestError for other numbers of channels.
    """

    role = "stem"
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        gives_channels: int,
        gives_size: int,
        mean: Moments | None = None,
        std: Moments | None = None,
        gives_mean: Moments | None = None,
        gives_std: Moments | None = None,
        filter: Filter = "bilinear",
    ) -> None:
        super().__init__()
        if channels != gives_channels and 1 not in (channels, gives_channels):
            raise RequestError(
                f"an input adapter repeats one channel or averages several into one; "
                f"it cannot make {gives_channels} channels of {channels}"
            )
        self.takes = Port.of("image", channels=channels, size=size)
        self.gives = Port.of("image", channels=gives_channels, size=gives_size)
        self.channels, self.gives_channels, self.size, self.filter = channels, gives_channels, gives_size, filter
        self.wanted = (gives_mean, gives_std)
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.zeros(1, gives_channels, 1, 1), persistent=False)
        self.weights = (1.0 / channels,) * channels  # of the input's channels, where they are averaged
        self._normalise(mean, std)

    def _normalise(self, mean: Moments | None, std: Moments | None) -> None:
        """Set the affine map of each channel given from the statistics of the data; None where nothing changes."""
        gives_mean, gives_std = self.wanted
        self.affine = None not in (mean, std, gives_mean, gives_std) and (mean, std) != self.wanted
        if mean is None or std is None or gives_mean is None or gives_std is None:
            return
        ours, theirs = _double(mean), _double(std)
        if self.channels > self.gives_channels:  # pixels are averaged, so their spread weighs each channel
            self.weights = tuple((theirs / theirs.sum()).tolist())
            ours, theirs = ours.mean().view(1), theirs.mean().view(1)
        scale = theirs.expand(self.gives_channels) / _double(gives_std)
        shift = (ours.expand(self.gives_channels) - _double(gives_mean)) / _double(gives_std)
        for buffer, value in ((self.scale, scale), (self.shift, shift)):
            if not buffer.is_meta:
                buffer.copy_(value.view(1, -1, 1, 1))

    def see(self, mean: Moments, std: Moments) -> None:
        """Take images that were normalised by these statistics from now on; kept with the arguments."""
        self.arguments |= {"mean": tuple(mean), "std": tuple(std)}
        self._normalise(tuple(mean), tuple(std))

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Normalised images (B, channels, H, W) to (B, gives_channels, gives_size, gives_size), normalised anew."""
        if self.channels > self.gives_channels:
            x = (x * x.new_tensor(self.weights).view(1, -1, 1, 1)).sum(1, keepdim=True)
        if x.shape[-1] != self.size:
            wanted = (self.size, self.size)
            x = F.interpolate(x, size=wanted, mode=self.filter, align_corners=False, antialias=True)
        if self.affine:
            return x * self.scale + self.shift
        return x if x.shape[1] == self.gives_channels else x.expand(-1, self.gives_channels, -1, -1)


def _double(values: Moments) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def see(chain: Chain, mean: Moments, std: Moments) -> Chain:
    """The same chain; a first leaf that adapts images now takes those normalised by these statistics."""
    if chain and isinstance(chain.leaves[0], InputAdapter):
        chain.leaves[0].see(mean, std)
    return chain


class MapsToTokens(Module):
    """Feature maps (B, C, H, W) to tokens (B, H W, C), row by row, without class token."""

    role = "stitch"

    def __init__(self, width: int, cells: Grid) -> None:
        super().__init__()
        self.takes, self.gives = maps(width, cells), Port.of("tokens", width=width, prefix=0, grid=cells)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class TokensToMaps(Module):
    """Tokens (B, H W, C) without class token to feature maps (B, C, H, W); undoes :class:`MapsToTokens`."""

    role = "stitch"

    def __init__(self, width: int, cells: Grid) -> None:
        super().__init__()
        self.takes, self.gives = Port.of("tokens", width=width, prefix=0, grid=cells), maps(width, cells)
        self.cells = cells

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = x.transpose(1, 2).unflatten(2, self.cells)
        return out


def maps(channels: int, cells: Grid) -> Port:
    """The port of feature maps of so many channels on a grid of (height, width) cells."""
    return Port.of("maps", channels=channels, height=cells[0], width=cells[1])


class Resample(Module):
    """Tokens of one grid to tokens of another: (B, prefix + h w, width) to (B, gives_prefix + h' w', width).

    Grid tokens are interpolated bilinearly over the grid (``align_corners`` off, antialiased where it shrinks). Class
    tokens pass in order as far as both sides have them, at most ``kept``; those too many are dropped, those missing
    are the mean of the grid tokens given. Linear with weights that sum to 1, so it commutes with an affine map of
    every token. ``gives_prefix`` and ``gives_grid`` None: as taken.
    """

    role = "stitch"
    down: Tensor
    across: Tensor

    def __init__(
        self,
        width: int,
        prefix: int,
        grid: Grid,
        gives_prefix: int | None = None,
        gives_grid: Grid | None = None,
        kept: int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.prefix, self.grid = width, prefix, grid
        self.gives_prefix = prefix if gives_prefix is None else gives_prefix
        self.gives_grid = grid if gives_grid is None else gives_grid
        common = min(self.prefix, self.gives_prefix)
        self.kept = common if kept is None else min(kept, common)
        self.takes = Port.of("tokens", width=width, prefix=self.prefix, grid=self.grid)
        self.gives = Port.of("tokens", width=width, prefix=self.gives_prefix, grid=self.gives_grid)
        for name, old, new in zip(("down", "across"), self.grid, self.gives_grid, strict=True):
            self.register_buffer(name, _interpolation(old, new), persistent=False)

    @property
    def changes_nothing(self) -> bool:
        """Whether tokens leave as they came."""
        return self.takes == self.gives and self.kept == self.prefix

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        cells = x[:, self.prefix :]
        if self.grid != self.gives_grid:  # products, whose backward pass is deterministic on every device
            cells = cells.unflatten(1, self.grid)
            cells = torch.einsum("ih,jw,bhwc->bijc", self.down.to(x.dtype), self.across.to(x.dtype), cells)
            cells = cells.flatten(1, 2)
        made = cells.mean(1, keepdim=True).expand(-1, self.gives_prefix - self.kept, -1)
        return torch.cat([x[:, : self.kept], made, cells], dim=1)


def _interpolation(old: int, new: int) -> Tensor:
    """The matrix (new, old) of linear interpolation along one axis; its rows sum to 1."""
    with torch.device("cpu"):
        eye = torch.eye(old, dtype=torch.float64)[None, None]
        shape = (new, old)
        matrix = F.interpolate(eye, size=shape, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return matrix.float().to(torch.get_default_device())
