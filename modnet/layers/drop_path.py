"""Stochastic depth (Huang et al. 2016), drawn per sample from the pass's key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, Module, Pass


def survival(
    leaf: Module, rate: float, x: Tensor, ctx: Pass, branches: int, purpose: str = "drop_path"
) -> Tensor | None:
    """Factor of each residual branch and sample: 0 with probability ``rate``, else 1 / (1 - rate).

    Shape (branches, B, 1, …), ready to multiply branches shaped like ``x``; None where nothing is dropped: in
    evaluation, in a pass without a key, or at rate 0. One draw call serves all branches. A sample's draw depends on
    the pass's key, the leaf's position and the sample's number alone, so any batch gives it the same.
    """
    if rate <= 0 or not leaf.training or not ctx.stochastic:
        return None
    ids = torch.arange(len(x), device=x.device) if ctx.ids is None else ctx.ids
    kept = ctx.rng(purpose).uniform(ids, branches) >= rate
    factor = kept.to(x.dtype).div_(1 - rate)
    return factor.T.reshape(branches, len(x), *[1] * (x.ndim - 1))


def set_drop_path(chain: Chain, rate: float) -> None:
    """Spread drop-path rates 0 … ``rate`` evenly over the blocks of the chain given, whatever it is part of.

    In incubation that chain is the hybrid, so a block's rate is not the one it gets after assembly (Deep Incubation,
    Ni et al. 2022). Blocks that cannot drop a path (no ``drop_path``) keep their place in the count; those with
    ``even_drop_path`` all get ``rate`` itself, as in circuits (NAC, arXiv 2210.08031).
    """
    blocks = [leaf for leaf in chain.leaves if leaf.role == "block"]
    rates = torch.linspace(0, rate, len(blocks), device="cpu")  # float32, as the reference has it
    for block, value in zip(blocks, rates.tolist(), strict=True):
        if hasattr(block, "drop_path"):
            own: Any = rate if getattr(block, "even_drop_path", False) else value
            block.drop_path = block.arguments["drop_path"] = own
