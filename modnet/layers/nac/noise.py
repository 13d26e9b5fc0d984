"""Random draws of a circuit, each from the key of its purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from modnet.chain import Module, Pass
from modnet.randomness import Key


def draw_key(leaf: Module, ctx: Pass, purpose: str, always: bool = False) -> Key | None:
    """The key of a draw in the leaf that is running; None where nothing is drawn: in evaluation, or without a key.

    ``always``: drawn in evaluation as well, there from a constant key if the pass has none.
    """
    if ctx.stochastic and (leaf.training or always):
        return ctx.rng(purpose)
    return Key.of(0, "leaf", ctx.leaf, purpose) if always else None


def sample_ids(ctx: Pass, x: Tensor) -> Tensor:
    """Sample numbers of the batch ``x``, (B,); positions in the batch where the pass has none."""
    return torch.arange(len(x), device=x.device) if ctx.ids is None else ctx.ids


def noisy(codes: Tensor, alpha: float, key: Key | None) -> Tensor:
    """Codes (U, C) plus noise uniform in ±alpha·|c|, one draw for the whole batch; the noise takes no gradient."""
    if key is None or alpha == 0:
        return codes
    uniform = key.uniform(torch.arange(len(codes), device=codes.device), codes.shape[-1])
    return codes + (alpha * codes.abs() * (2 * uniform - 1)).detach()


def gumbel(key: Key, ids: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise (B, count), −log of an exponential variable, one row a sample."""
    exponential = -torch.log1p(-key.uniform(ids, count))
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()
