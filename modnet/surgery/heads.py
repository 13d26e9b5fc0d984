"""Heads of a dense network's attention as experts, and the dense network of these again (MoH, arXiv 2410.11842)."""

from __future__ import annotations

import torch

from modnet.chain import Chain, Module
from modnet.errors import RequestError
from modnet.layers.attention import Attention
from modnet.layers.block import AttentionBlock
from modnet.layers.head_experts import HeadExperts
from modnet.randomness import Key
from modnet.recipe.routing import Split
from modnet.surgery.conversion import head_blocks, replaced

ROUTED = ("attention_experts", "attention_top_k", "attention_router", "attention_heads")


def split_heads(chain: Chain, to: Split, key: Key) -> Chain:
    """The network with the heads of its attention as experts; nothing is copied, and nothing added but a router.

    Where every weight is 1 and ``top_k`` equals ``experts`` it computes what the dense network does. Raises
    RequestError where heads do not divide into the experts, or the network has no such blocks.
    """
    return replaced(chain, to.placement, lambda leaf, number: _routed(leaf, number, to, key.fold("block", number)))


def _routed(leaf: Module, number: int, to: Split, key: Key) -> Module:
    if not isinstance(leaf, AttentionBlock) or not isinstance(leaf.attn, Attention):
        held = "has heads that are experts already" if isinstance(leaf, AttentionBlock) else "is no block of a vit"
        raise RequestError(f"block {number} {held} ({type(leaf).__name__}); part: attention splits a dense attention")
    values = (to.experts, to.top_k, to.router.model_dump(mode="json"), _heads_of_each(leaf.attn.heads, to.experts))
    with key.fold("router").forked():
        made = type(leaf)(**leaf.arguments | dict(zip(ROUTED, values, strict=True)))
    attention: torch.nn.Module = made.attn
    assert isinstance(attention, HeadExperts)
    attention.divide(leaf.attn)
    return _with_the_rest(made, leaf)


def _heads_of_each(heads: int, experts: int) -> int:
    if heads % experts:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        raise RequestError(
            f"{heads} heads of attention do not divide into {experts} experts; "
            f"give experts: {heads} for one head each, or one of {', '.join(map(str, fits))}"
        )
    return heads // experts


def joined_heads(chain: Chain) -> Chain:
    """The network with dense attention in the place of heads that are experts, whatever they have learned.

    It computes the same where every token takes all heads with weight 1. Raises RequestError for heads that their
    router weighs: no dense attention equals them.
    """
    leaves = list(chain.leaves)
    for at, leaf in head_blocks(chain).items():
        heads = leaf.attn
        assert isinstance(heads, HeadExperts)
        if not heads.gate.by_keys:
            raise RequestError(f"the heads of leaf {at} are weighted by their router, so that no attention equals them")
        heads_of_each = heads.query.weight.shape[1] // heads.size
        if heads.count * heads_of_each != leaf.arguments["heads"]:
            raise RequestError(f"heads of leaf {at} were pruned or added, so that they fill no dense attention")
        made = type(leaf)(**leaf.arguments | dict(zip(ROUTED, (None, None, None, 1), strict=True)))
        dense: torch.nn.Module = made.attn
        assert isinstance(dense, Attention)
        heads.join(dense)
        leaves[at] = _with_the_rest(made, leaf)
    return Chain(leaves, chain.bounds, chain.shared_part)


def _with_the_rest(made: AttentionBlock, leaf: AttentionBlock) -> AttentionBlock:
    """A block with all of another's tensors but those of attention, on the same device."""
    rest = {name: t for name, t in leaf.state_dict().items() if not name.startswith("attn.")}
    made.load_state_dict(rest, strict=False)
    return made.to(leaf.norm1.weight.device)
