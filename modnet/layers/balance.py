"""Losses that keep a router from sending everything to a few experts.

All take a group's tokens along the last but one axis, (…, T, E), and give one number for each group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

Across = Callable[[Tensor], Tensor]
"""What takes a statistic of this process's tokens to that of all tokens; its gradient is the local one's."""


def here(value: Tensor) -> Tensor:
    """The statistic of this process alone."""
    return value


def everywhere(value: Tensor) -> Tensor:
    """The mean over all processes, if there are several; the gradient is the local statistic's.

    With gradients that are averaged over processes, a loss of it then has the value and the gradient that one process
    would find on all tokens at once.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    mean = value.detach().clone()
    distributed.all_reduce(mean)
    return value + (mean / distributed.get_world_size() - value.detach())


def cv_squared(values: Tensor, unbiased: bool = False) -> Tensor:
    """Squared coefficient of variation over the last axis; V-MoE takes the population's variance, fastmoe not."""
    if values.shape[-1] == 1:  # one expert has nothing to vary against
        return values.new_zeros(values.shape[:-1])
    return values.var(-1, correction=int(unbiased)) / values.mean(-1).square().clamp(min=1e-10)


def importance(probs: Tensor, unbiased: bool = False, across: Across = here) -> Tensor:
    """Variation of each expert's summed probability (Shazeer et al. 2017)."""
    return cv_squared(across(probs.sum(-2)), unbiased)


def load(
    clean: Tensor,
    noisy: Tensor,
    std: Tensor | float,
    top_k: int,
    unbiased: bool = False,
    across: Across = here,
) -> Tensor:
    """Variation of each expert's chance to be chosen once its noise is drawn anew (V-MoE).

    One threshold for a token: its K-th largest noisy logit, through which gradients flow.
    """
    return cv_squared(across(chances(clean, noisy, std, top_k).mean(-2)), unbiased)


def chances(clean: Tensor, noisy: Tensor, std: Tensor | float, top_k: int) -> Tensor:
    """The chance of each expert to be among a token's K if its own noise were drawn anew (…, T, E)."""
    threshold = noisy.topk(top_k, dim=-1).values[..., -1:]
    found: Tensor = torch.special.ndtr((clean - threshold) / std)
    return found


def shazeer_load(clean: Tensor, noisy: Tensor, std: Tensor, top_k: int, across: Across = here) -> Tensor:
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
    return cv_squared(across(torch.special.ndtr((clean - threshold) / std).sum(-2)), unbiased=True)


def switch(probs: Tensor, indices: Tensor, across: Across = here) -> Tensor:
    """E · Σ (share of pairs of an expert, before dropping) · (its mean probability): 1 at balance (Fedus et al. 2022).

    ``indices`` (…, T, K). With the first choice alone this is V-MoE's GShard loss.
    """
    experts = probs.shape[-1]
    chosen = torch.arange(experts, device=indices.device) == indices[..., None]
    share = across(chosen.to(probs.dtype).mean((-3, -2)))
    return experts * (share * across(probs.mean(-2))).sum(-1)


def z_loss(logits: Tensor) -> Tensor:
    """Mean of the squared log-sum-exp of a token's logits (ST-MoE, Zoph et al. 2022)."""
    return logits.logsumexp(-1).square().mean(-1)


def mutual_information(probs: Tensor, across: Across = here) -> Tensor:
    """Minus the mutual information of token and expert, from -ln E to 0 (ModuleFormer)."""
    mean = across(probs.mean(-2))
    return across(mean_entropy(probs)) + (mean * (mean + 1e-8).log()).sum(-1)


def concentration(probs: Tensor, across: Across = here) -> Tensor:
    """Entropy of the mean probabilities, from 0 (all tokens to one expert) to ln E (ModuleFormer, fine-tuning)."""
    spread: Tensor = torch.special.entr(across(probs.mean(-2))).sum(-1)
    return spread


def mean_entropy(probs: Tensor) -> Tensor:
    """Mean entropy of a token's probabilities, in nats."""
    entropy: Tensor = torch.special.entr(probs).sum(-1).mean(-1)
    return entropy
