"""The same experts under other routing: how many a token goes to, their places, and who gets them."""

from __future__ import annotations

from typing import Literal

import torch

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.layers.block import AttentionBlock
from modnet.layers.dispatch import Order
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoEBlock
from modnet.surgery.conversion import expert_blocks, head_blocks


def rerouted(
    chain: Chain,
    top_k: int | None = None,
    capacity: float | Literal["as-is"] | None = "as-is",
    order: Order | None = None,
) -> Chain:
    """A copy of the chain for inference, whose tokens go to ``top_k`` experts with places of factor ``capacity``.

    ``capacity`` None drops nothing; what is left out stays as it is. Experts that share an output's bias among the K
    that a token goes to (split networks) share it among the new K. Heads that are experts go to ``top_k`` where
    there are no others, and drop nothing. Raises RequestError for more choices than experts.
    """
    twin = chain.cloned()
    if top_k and not expert_blocks(twin):
        for leaf in head_blocks(twin).values():
            _attend_to(leaf, top_k)
    for block in expert_blocks(twin).values():
        _change(block, top_k or block.moe.top_k, capacity, order)
    return twin


def _attend_to(block: AttentionBlock, top_k: int) -> None:
    heads = block.attn
    assert isinstance(heads, HeadExperts)
    if top_k > heads.count:
        raise RequestError(f"top_k {top_k} asks for more experts of heads than there are ({heads.count})")
    heads.top_k = heads.gate.top_k = top_k
    block.arguments |= {"attention_top_k": top_k}


@torch.no_grad()
def _change(block: MoEBlock, top_k: int, capacity: float | Literal["as-is"] | None, order: Order | None) -> None:
    moe = block.moe
    if top_k > moe.count:
        raise RequestError(f"top_k {top_k} asks for more experts than there are ({moe.count})")
    if moe.gate.by_keys:
        moe.experts.fc2.bias.mul_(moe.top_k / top_k)
    values = {} if capacity == "as-is" else {"capacity": capacity, "capacity_eval": capacity}
    params = moe.params.changed(**values, **({"order": order} if order else {}))
    moe.top_k = moe.gate.top_k = top_k
    moe.params = moe.gate.params = params
    block.arguments |= {"top_k": top_k, "router": params.model_dump(mode="json")}
