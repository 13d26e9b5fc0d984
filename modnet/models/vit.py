"""Vision Transformers of any size, as chains (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.layers.block import Block
from modnet.layers.drop_path import set_drop_path
from modnet.layers.head import Head
from modnet.layers.stem import ConvStem, PatchStem
from modnet.recipe.models import ViT


def vit(params: ViT, port: Port, classes: int) -> Chain:
    """A ViT for images of ``port``, cut into ``len(params.depths)`` modules.

    Raises RequestError where sizes do not divide: image by patch, width by heads.
    """
    size, channels = image_size(port)
    stem_class = ConvStem if params.stem == "conv" else PatchStem
    token = params.pool == "token"
    stem = stem_class(channels, size, params.width, params.patch, token)
    assert stem.gives is not None
    prefix, grid = stem.gives["prefix"], stem.gives["grid"]
    heads = params.heads or default_heads(params.width)
    blocks = [
        Block(params.width, heads, params.mlp_ratio, params.qkv_bias, params.norm_eps, prefix=prefix, grid=grid)
        for _ in range(sum(params.depths))
    ]
    head = Head(params.width, classes, params.pool, params.norm_eps, prefix, grid)
    chain = Chain([stem, *blocks, head], module_bounds(params.depths))
    set_drop_path(chain, params.drop_path)
    return chain


def image_size(port: Port) -> tuple[int, int]:
    """Side in pixels and number of channels of an image port; raises RequestError for another kind of port."""
    if port.kind != "image" or port["size"] is None or port["channels"] is None:
        raise RequestError(f"this model takes images of a known size and number of channels, not {port}")
    return port["size"], port["channels"]


def default_heads(width: int) -> int:
    """One head for every 16 channels up to width 128, else every 64; raises RequestError if that does not divide."""
    each = 16 if width <= 128 else 64
    if width >= each and width % each:
        raise RequestError(
            f"width {width} has no default number of heads, as it is no multiple of {each}; "
            f"give heads, or a width of {width // each * each} or {(width // each + 1) * each}"
        )
    return max(1, width // each)


def module_bounds(depths: Sequence[int]) -> tuple[int, ...]:
    """Bounds of a chain stem, blocks, head in modules of so many blocks: the ends belong to the outer modules."""
    inner = [1 + blocks for blocks in accumulate(depths)]
    return (0, *inner[:-1], inner[-1] + 1)
