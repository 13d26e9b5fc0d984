"""V-MoE: Vision Transformers with experts in chosen blocks (Riquelme et al. 2021, arXiv 2106.05974)."""

from __future__ import annotations

from modnet.chain import Chain, Port
from modnet.layers.block import Block
from modnet.layers.drop_path import set_drop_path
from modnet.layers.moe import MoEBlock
from modnet.models.vit import vit
from modnet.recipe.models import ViT, VMoE
from modnet.recipe.routers import places


def vmoe(params: VMoE, port: Port, classes: int) -> Chain:
    """A ViT whose blocks at ``params.placement`` hold experts; cut, taught and moved like a ViT.

    Raises RequestError where sizes do not divide: image by patch, width by heads.
    """
    dense = vit(ViT(**{name: getattr(params, name) for name in ViT.model_fields}), port, classes)
    chosen = places(params.placement, sum(params.depths))
    blocks = [position for position, leaf in enumerate(dense.leaves) if leaf.role == "block"]
    leaves = list(dense.leaves)
    for position in (blocks[place] for place in chosen):
        leaf = leaves[position]
        assert isinstance(leaf, Block)
        leaves[position] = moe_block(leaf, params)
    chain = Chain(leaves, dense.bounds)
    set_drop_path(chain, params.drop_path)
    return chain


def moe_block(block: Block, params: VMoE) -> MoEBlock:
    """A fresh block with experts for the place of a dense one."""
    router = params.router.model_dump(mode="json")
    return MoEBlock.in_place_of(block, block.mlp.fc1.out_features, params.experts, params.top_k, router)
