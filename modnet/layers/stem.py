"""Stems: images to tokens, with a class token and a learned position table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.initialise import table


class PatchEmbed(nn.Module):
    """Cut images (B, C, H, W) into squares of ``patch`` pixels and map each linearly: (B, width, H/p, W/p)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class ConvEmbed(nn.Module):
    """Up to two 3 x 3 convolutions of stride 2, then a projection of the remaining stride: the same grid as patches.

    After "Early convolutions help transformers see better" (Xiao et al. 2021), with group norm over all channels in
    place of batch norm, so that no sample sees another. Raises RequestError for an odd patch size.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        halvings = 2 if patch % 4 == 0 else 1
        if patch % 2:
            raise RequestError(
                f"a convolutional stem halves the image at least once, so its patch size must be even, not {patch}; "
                "give an even patch, or stem: patch"
            )
        layers: list[nn.Module] = []
        for left in reversed(range(halvings)):
            given, channels = channels, max(1, width >> left)
            layers += [nn.Conv2d(given, channels, 3, stride=2, padding=1, bias=False)]
            layers += [nn.GroupNorm(1, channels), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        rest = patch >> halvings
        self.proj = nn.Conv2d(channels, width, rest, stride=rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.convs(x))
        return out


class _Stem(Module):
    """Embedding, class token in front, position table added: image (B, C, S, S) to tokens (B, prefix + g*g, width)."""

    role = "stem"
    embed: type[nn.Module] = PatchEmbed

    def __init__(self, channels: int, size: int, width: int, patch: int, token: bool = True) -> None:
        super().__init__()
        side = _grid_side(size, patch)
        prefix = int(token)
        self.takes = Port.of("image", channels=channels, size=size)
        self.gives = Port.of("tokens", width=width, prefix=prefix, grid=(side, side))
        self.patch_embed = self.embed(channels, width, patch)
        self.cls_token = table(1, 1, width) if token else None
        self.pos_embed = table(1, prefix + side * side, width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        out: Tensor = tokens + self.pos_embed
        return out


class PatchStem(_Stem):
    """Linear patch embedding (Dosovitskiy et al. 2021); raises RequestError if ``patch`` does not divide ``size``."""

    embed = PatchEmbed


class ConvStem(_Stem):
    """Convolutional embedding without batch statistics, on the same grid as patches; see :class:`ConvEmbed`."""

    embed = ConvEmbed


def _grid_side(size: int, patch: int) -> int:
    if size % patch:
        fitting = [p for p in range(2, size + 1) if size % p == 0]
        raise RequestError(
            f"images of {size} x {size} pixels do not divide into patches of {patch}; "
            f"patch sizes that do: {', '.join(map(str, fitting))}"
        )
    return size // patch
