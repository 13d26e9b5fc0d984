"""Experts in the place of a trained network's dense blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modnet.chain import Chain, Module
from modnet.errors import RequestError
from modnet.layers.block import AttentionBlock, Block
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoEBlock
from modnet.recipe.routers import places

Make = Callable[[Block, int], MoEBlock]


def converted(chain: Chain, placement: str | Sequence[int], make: Make) -> Chain:
    """The chain under the same cut, with ``make(block, number)`` in the place of the blocks that ``placement`` names.

    All other leaves are shared with the chain; attention, norms and drop path of a converted block are copied. Raises
    RequestError where the network has no such blocks, or another kind of block stands there.
    """
    return replaced(chain, placement, lambda leaf, number: _in_place(leaf, number, make))


def replaced(chain: Chain, placement: str | Sequence[int], make: Callable[[Module, int], Module]) -> Chain:
    """The chain under the same cut, with ``make(leaf, number)`` in the place of the blocks that ``placement`` names.

    All other leaves are shared with the chain. Raises RequestError where the network has no such blocks.
    """
    blocks = [position for position, leaf in enumerate(chain.leaves) if leaf.role == "block"]
    leaves = list(chain.leaves)
    try:
        chosen = places(placement, len(blocks))
    except ValueError as error:
        raise RequestError(str(error)) from error
    for number in chosen:
        leaves[blocks[number]] = make(leaves[blocks[number]], number)
    return Chain(leaves, chain.bounds, chain.shared_part)


def _in_place(leaf: Module, number: int, make: Make) -> MoEBlock:
    if not isinstance(leaf, Block):
        raise RequestError(f"block {number} is a {type(leaf).__name__}; experts take the place of a dense vit's MLPs")
    block = make(leaf, number)
    for part in ("norm1", "attn", "norm2"):
        getattr(block, part).load_state_dict(getattr(leaf, part).state_dict())
    block.moe.settle()
    return block.to(leaf.norm1.weight.device)


def expert_blocks(chain: Chain) -> dict[int, MoEBlock]:
    """The blocks of a chain that hold experts, by position among its leaves."""
    return {at: leaf for at, leaf in enumerate(chain.leaves) if isinstance(leaf, MoEBlock)}


def head_blocks(chain: Chain) -> dict[int, AttentionBlock]:
    """The blocks of a chain whose heads of attention are experts, by position among its leaves."""
    return {
        at: leaf
        for at, leaf in enumerate(chain.leaves)
        if isinstance(leaf, AttentionBlock) and isinstance(leaf.attn, HeadExperts)
    }


def block_numbers(chain: Chain) -> dict[int, int]:
    """The number of each block, from 0, by position among the leaves."""
    return {
        at: n for n, at in enumerate(at for at, leaf in enumerate(chain.leaves) if isinstance(leaf, AttentionBlock))
    }
