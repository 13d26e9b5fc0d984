"""Small convolutional networks as chains: a stem, residual blocks on ever coarser maps, a classifier."""

from __future__ import annotations

from modnet.chain import Chain, Module, Port
from modnet.layers.convnet import CellStem, ConvBlock, MapHead
from modnet.layers.drop_path import set_drop_path
from modnet.models.vit import image_size, module_bounds
from modnet.recipe.models import ConvNet


def convnet(params: ConvNet, port: Port, classes: int) -> Chain:
    """A convolutional network for images of ``port``; modules begin by halving maps and widening them.

    Raises RequestError for images that do not divide into cells of ``params.cell`` pixels.
    """
    size, channels = image_size(port)
    given, cell = params.width, params.cell
    leaves: list[Module] = [CellStem(channels, size, given, cell)]
    for module, (width, depth) in enumerate(zip(params.widths, params.depths, strict=True)):
        for block in range(depth):
            shrink = 2 if not block and (module or params.halve == "all") else 1
            leaves.append(ConvBlock(given, width, size, cell, shrink, params.convs))
            given, cell = width, cell * shrink
    leaves.append(MapHead(given, classes, size, cell, params.pool))
    chain = Chain(leaves, module_bounds(params.depths))
    set_drop_path(chain, params.drop_path)
    return chain
