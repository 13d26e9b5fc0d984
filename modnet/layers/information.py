"""Losses on how much a router's choice says, in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def marginal_entropy(probs: Tensor) -> Tensor:
    """Entropy of the mean probabilities of tokens (…, T, E): as a loss it concentrates the load on few experts.

    Source: ModuleFormer (arXiv 2306.04640), section 3.3, load concentration.
    """
    entropy: Tensor = torch.special.entr(probs.mean(-2)).sum(-1)
    return entropy
