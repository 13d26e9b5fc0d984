"""timm's convolutional networks (ResNet, EfficientNet, ConvNeXt) as chains: every block is a leaf."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import accumulate, pairwise

from torch import Tensor

from modnet.chain import Chain, Module, Port
from modnet.errors import RequestError
from modnet.models.timm_conv_leaves import ConvBlock, ConvHead, ConvNeck, ConvStem, Skeleton, create, skeleton
from modnet.models.timm_weights import timm_state
from modnet.models.vit import image_size
from modnet.recipe.models import TIMM_MODULES, Timm
from modnet.surgery.cutting import cut, near_equal


def conv_chain(params: Timm, port: Port, classes: int) -> Chain:
    """A convolutional timm model for images of ``port``, cut by blocks; by default at the ends of its stages.

    Its classifier starts afresh where the weights are for other classes. Raises RequestError for depths that do not
    add up, and for ``drop_path``, which timm would draw unkeyed.
    """
    name, (size, channels) = params.model, image_size(port)
    parts = skeleton(name, channels, size, classes)
    depths = params.depths or stage_depths(parts)
    _check(params, parts, depths)
    leaves: list[Module] = [ConvStem(name, channels, size)]
    leaves += [ConvBlock(name, channels, size, i) for i in range(len(parts.blocks))]
    leaves += [ConvNeck(name, channels, size)] if parts.neck else []
    chain = cut(Chain([*leaves, ConvHead(name, channels, size, classes)]), depths)
    load_conv(chain, parts, timm_state(params, partial(create, name, channels, classes)))
    return chain


def stage_depths(parts: Skeleton, modules: int = TIMM_MODULES) -> tuple[int, ...]:
    """Blocks of each module if the network's stages are divided over the modules, near-equally many stages each."""
    counts = [len(stage) for stage in parts.stages]
    ends = [0, *accumulate(near_equal(len(counts), modules))]
    return tuple(sum(counts[a:b]) for a, b in pairwise(ends))


def _check(params: Timm, parts: Skeleton, depths: tuple[int, ...]) -> None:
    if sum(depths) != len(parts.blocks):
        stages = [len(stage) for stage in parts.stages]
        raise RequestError(
            f"depths {list(depths)} add up to {sum(depths)} blocks, but {params.name} has {len(parts.blocks)}, in "
            f"stages of {stages}; for example {list(stage_depths(parts, len(depths)))}"
        )
    if params.drop_path:
        raise RequestError(f"{params.name} has no stochastic depth here; leave out drop_path, or set it to 0")


def load_conv(chain: Chain, parts: Skeleton, state: Mapping[str, Tensor]) -> None:
    """Copy timm's state in; raises RuntimeError naming every missing or unexpected key."""
    chain.load_state_dict({_renamed(name, chain, parts): tensor for name, tensor in state.items()})


def _renamed(name: str, chain: Chain, parts: Skeleton) -> str:
    """The chain's key for one of timm's."""
    for i, block in enumerate(parts.blocks, start=1):
        if name.startswith(f"{block}."):
            return f"{i}.block.{name.removeprefix(f'{block}.')}"
        if block in parts.downs and name.startswith(f"{parts.downs[block]}."):
            return f"{i}.downsample.{name.removeprefix(f'{parts.downs[block]}.')}"
    first, last = name.partition(".")[0], len(chain.leaves) - 1
    return f"{0 if first in parts.stem else last if first in parts.head else last - 1}.{name}"
