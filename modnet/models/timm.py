"""The timm adapter: a model that is a stem, blocks and a head becomes a chain, weights included."""

from __future__ import annotations

from functools import partial

import timm
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.layers.adapters import InputAdapter, Moments
from modnet.layers.drop_path import set_drop_path
from modnet.models.timm_conv import conv_chain
from modnet.models.timm_conv_leaves import is_convolutional
from modnet.models.timm_leaves import TimmBlock, TimmHead, TimmStem, create, skeleton
from modnet.models.timm_weights import timm_state
from modnet.models.vit import image_size, module_bounds
from modnet.recipe.models import TIMM_MODULES, Timm
from modnet.surgery.cutting import near_equal

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def timm_chain(params: Timm, port: Port, classes: int) -> Chain:
    """The timm model of ``params.name`` (``timm:NAME`` or ``timm:NAME.TAG``) as a chain.

    Image size and channels follow ``params`` and else the data; where they are not the data's, or another
    normalisation is asked for, an :class:`InputAdapter` is the first leaf (what the data were normalised by is told
    later, by :func:`modnet.layers.adapters.see`). Classes follow the data: a classifier for others starts afresh.
    Raises RequestError for a model that is no plain chain, for weights out of reach, and for depths that do not add
    up.
    """
    size, channels = image_size(port)
    own = Port.of("image", channels=params.channels or channels, size=params.size or size)
    build = conv_chain if is_convolutional(params.model) else vit_chain
    chain = build(params, own, classes)
    mean, std = moments(params, own["channels"])
    if own == port and mean is None:
        return chain
    adapter = InputAdapter(
        channels, size, own["channels"], own["size"], gives_mean=mean, gives_std=std, filter=params.resize
    )
    return Chain([adapter, *chain.leaves], [0, *(bound + 1 for bound in chain.bounds[1:])])


def moments(params: Timm, channels: int) -> tuple[Moments | None, Moments | None]:
    """Mean and standard deviation that the network wants of each channel; None where it takes the data's.

    Of one channel, the mean over the three that are known.
    """
    if params.normalise == "data":
        return None, None
    config = timm.get_pretrained_cfg(params.model) if params.normalise == "own" else None
    mean, std = IMAGENET if config is None else (config.mean, config.std)
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) != channels:
        raise RequestError(f"{params.name}: normalise: {params.normalise} is known of 3 channels, not of {channels}")
    return tuple(mean), tuple(std)


def vit_chain(params: Timm, port: Port, classes: int) -> Chain:
    """A Vision Transformer of timm; with weights, timm resizes the position table and the patch embedding."""
    name, (size, channels) = params.model, image_size(port)
    model = skeleton(name, channels, size, classes)
    depths = params.depths or near_equal(len(model.blocks), TIMM_MODULES)
    if sum(depths) != len(model.blocks):
        raise RequestError(
            f"depths {list(depths)} add up to {sum(depths)} blocks, but timm:{name} has "
            f"{len(model.blocks)}; for example {list(near_equal(len(model.blocks), len(depths)))}"
        )
    blocks = [TimmBlock(name, channels, size, i) for i in range(len(model.blocks))]
    stem, head = TimmStem(name, channels, size), TimmHead(name, channels, size, classes)
    chain = Chain([stem, *blocks, head], module_bounds(depths))
    load_timm(chain, timm_state(params, partial(create, name, channels, size, classes)))
    set_drop_path(chain, params.drop_path)
    return chain


def load_timm(chain: Chain, state: dict[str, Tensor]) -> None:
    """Copy a Vision Transformer's timm state in; raises RuntimeError naming every missing or unexpected key."""
    last = len(chain.leaves) - 1
    heads = {name.split(".")[0] for name, _ in chain.leaves[-1].named_parameters()}
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            index, _, inner = rest.partition(".")
            renamed[f"{1 + int(index)}.{inner}"] = tensor
        else:
            renamed[f"{last if first in heads else 0}.{name}"] = tensor
    chain.load_state_dict(renamed)
