"""Surgery with low-rank adapters: put them on a network, load them from others, fold them into its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.layers.lora import Adapted, LowRank
from modnet.randomness import Key

KEY = re.compile(r"(?:^|\.)(\d+)\.adapters\.([qkvo])\.([ab])$")
Stacks = dict[tuple[int, str, str], Tensor]  # leaf's position, target, a or b: (E, …)


def adapted(chain: Chain, spec: Mapping[str, Any], key: Key, head: bool = True) -> Chain:
    """The network, frozen, with fresh adapters on every transformer block; its head learns if asked.

    Raises RequestError if no block has attention projections.
    """
    frozen = chain.flat.frozen()
    blocks = [i for i, leaf in enumerate(frozen.leaves) if leaf.role == "block" and _has_attention(leaf)]
    if not blocks:
        raise RequestError("adapters stand on attn.qkv and attn.proj of transformer blocks; the network has none")
    leaves = list(frozen.leaves)
    with key.fold("adapters").forked():
        for i in blocks:
            leaves[i] = Adapted(Chain([leaves[i]]), dict(spec)).to(next(chain.parameters()).device)
    if head:
        leaves[-1] = chain.leaves[-1]
    return Chain(leaves, chain.bounds, frozen.shared_part)


def stacks_of(state: Mapping[str, Tensor]) -> Stacks:
    """The adapters among a network's tensors, as this module or a file of it names them."""
    found: Stacks = {}
    for name, tensor in state.items():
        match = KEY.search(name)
        if match:
            found[int(match[1]), match[2], match[3]] = tensor
    return found


def load_adapters(chain: Chain, given: Sequence[Stacks], freeze: bool = True) -> None:
    """Put adapters that were trained apart side by side into a network that has as many, and freeze them if asked.

    Raises RequestError where they are of other blocks, targets or shapes.
    """
    own = {
        (i, target, table): getattr(part, table)
        for i, leaf in enumerate(chain.leaves)
        if isinstance(leaf, Adapted)
        for target, part in leaf.adapters.items()
        for table in ("a", "b")
    }
    for stacks in given:
        if stacks.keys() != own.keys():
            odd = sorted(stacks.keys() ^ own.keys())[0]
            raise RequestError(
                f"adapters do not fit the network: leaf {odd[0]} has target {odd[1]} on one side only; "
                "give the same network and targets that they were trained on"
            )
    for place, parameter in own.items():
        joined = torch.cat([stacks[place].to(parameter.device) for stacks in given])
        if joined.shape != parameter.shape:
            raise RequestError(
                f"adapters of shape {tuple(joined.shape)} do not fit {tuple(parameter.shape)} "
                f"(target {place[1]} of leaf {place[0]}); give the same rank and width"
            )
        parameter.data.copy_(joined)
        parameter.requires_grad_(not freeze)


def folded(chain: Chain) -> Chain:
    """The network with its unrouted adapters added into its weights, on its own storage: as costly as without them.

    Raises RequestError for routed adapters, which are another map for every token.
    """
    leaves = list(chain.cloned().leaves)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Adapted):
            for target, part in leaf.adapters.items():
                assert isinstance(part, LowRank)
                if part.router is not None:
                    raise RequestError("routed adapters cannot be folded into the weights: each token mixes its own")
                leaf.layer(target).weight.data[leaf.rows(target)] += part.delta().detach()
            leaves[i] = leaf.inner.leaves[0]
    made = Chain(leaves, chain.bounds)
    for leaf in made.leaves:
        leaf.is_frozen = False
    return made.requires_grad_(True)


def _has_attention(leaf: nn.Module) -> bool:
    names = dict(leaf.named_modules())
    return all(isinstance(names.get(name), nn.Linear) for name in ("attn.qkv", "attn.proj"))
