"""Losses that keep a router from sending everything to a few experts.

All take a group's tokens along the last but one axis, (…, T, E), and give one number for each group.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cv_squared(values: Tensor, unbiased: bool = False) -> Tensor:
    """Squared coefficient of variation over the last axis; V-MoE takes the population's variance, fastmoe not."""
    return values.var(-1, correction=int(unbiased)) / values.mean(-1).square().clamp(min=1e-10)


def importance(probs: Tensor, unbiased: bool = False) -> Tensor:
    """Variation of each expert's summed probability (Shazeer et al. 2017)."""
    return cv_squared(probs.sum(-2), unbiased)


def load(clean: Tensor, noisy: Tensor, std: Tensor | float, top_k: int) -> Tensor:
    """Variation of each expert's chance to be chosen once its noise is drawn anew (V-MoE).

    One threshold for a token: its K-th largest noisy logit, through which gradients flow.
    """
    threshold = noisy.topk(top_k, dim=-1).values[..., -1:]
    chance = torch.special.ndtr((clean - threshold) / std)
    return cv_squared(chance.mean(-2))


def shazeer_load(clean: Tensor, noisy: Tensor, std: Tensor, top_k: int) -> Tensor:
    """As :func:`load`, with the threshold of the others' noise and unbiased variance (Shazeer et al. 2017, fastmoe).

    For an expert that is chosen now the threshold is the (K+1)-th largest noisy logit, else the K-th. With K = E
    every chance is one, and the loss is zero.
    """
    experts = noisy.shape[-1]
    if top_k >= experts:
        return noisy.new_zeros(noisy.shape[:-2])
    largest = noisy.topk(top_k + 1, dim=-1).values
    inside, outside = largest[..., -1:], largest[..., -2:-1]
    threshold = torch.where(noisy > inside, inside, outside)
    return cv_squared(torch.special.ndtr((clean - threshold) / std).sum(-2), unbiased=True)


def switch(probs: Tensor, indices: Tensor) -> Tensor:
    """E · Σ (share of pairs of an expert, before dropping) · (its mean probability): 1 at balance (Fedus et al. 2022).

    ``indices`` (…, T, K). With the first choice alone this is V-MoE's GShard loss.
    """
    experts = probs.shape[-1]
    chosen = torch.arange(experts, device=indices.device) == indices[..., None]
    share = chosen.to(probs.dtype).mean((-3, -2))
    return experts * (share * probs.mean(-2)).sum(-1)


def z_loss(logits: Tensor) -> Tensor:
    """Mean of the squared log-sum-exp of a token's logits (ST-MoE, Zoph et al. 2022)."""
    return logits.logsumexp(-1).square().mean(-1)


def mutual_information(probs: Tensor) -> Tensor:
    """Minus the mutual information of token and expert, from -ln E to 0 (ModuleFormer)."""
    mean = probs.mean(-2)
    return mean_entropy(probs) + (mean * (mean + 1e-8).log()).sum(-1)


def mean_entropy(probs: Tensor) -> Tensor:
    """Mean entropy of a token's probabilities, in nats."""
    entropy: Tensor = torch.special.entr(probs).sum(-1).mean(-1)
    return entropy
