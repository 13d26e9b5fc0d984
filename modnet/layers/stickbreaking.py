"""Stick-breaking attention: causal, without softmax and without positions (ModuleFormer, arXiv 2306.04640)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def stick_breaking(q: Tensor, k: Tensor, keep: Tensor | None = None) -> Tensor:
    """Weights (B, K, heads, Tq, Tk) of queries (B, Tq, K, heads, d) and keys (B, Tk, heads, d).

    Going back from a query's own position, each key takes the share sigmoid(q·k / sqrt(d)) of what nearer keys left:
    b_ij · prod over j < l <= i of (1 - b_il). A row sums to at most 1. The queries stand at the last Tq of the Tk
    positions. ``keep`` (B, Tk): 0 marks keys that are padding. Source: ModuleFormer, section 3.1.
    """
    z = torch.einsum("bqknd,bjnd->bknqj", q, k) / math.sqrt(q.shape[-1])
    dtype = torch.promote_types(z.dtype, torch.float32)
    z = z.to(dtype)
    if keep is not None:
        z = z + (1 - keep.to(dtype))[:, None, None, None] * torch.finfo(dtype).min
    queries, keys = z.shape[-2:]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=z.device).tril(keys - queries)
    log_share = F.logsigmoid(z)
    left = (log_share - z).masked_fill(~seen, 0)  # log(1 - b)
    # Summed from the nearest key on, so that far keys, whose weights vanish, cannot blur the near ones.
    nearer = left.flip(-1).cumsum(-1).flip(-1) - left
    return (log_share + nearer).exp().masked_fill(~seen, 0).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """The weighted sum of values (B, Tk, heads, d): (B, Tq, K, heads, d); the missing mass of a row adds nothing."""
    return torch.einsum("bknqj,bjnd->bqknd", stick_breaking(q, k, keep), v)
