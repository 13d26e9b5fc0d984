"""Losses over signatures, which shape who hears whom."""

from __future__ import annotations

import math
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from modnet.layers.nac.kernel import distances

Weight = float | tuple[float, float]
"""The weight of a term: constant, or going linearly from the first to the second number over the epochs."""


def scheduled(weight: Weight, progress: float) -> float:
    """The weight of a term when a share ``progress`` of the epochs is over."""
    if not isinstance(weight, tuple):
        return weight
    start, stop = weight
    return start + (stop - start) * progress


def lower(distance: Tensor) -> Tensor:
    """Every pair once: the entries below the diagonal, row by row."""
    rows, columns = torch.tril_indices(len(distance), len(distance), -1, device=distance.device)
    return distance[rows, columns]


def repulsion(signatures: Tensor, hinge: float = 0.4, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """−d summed (or averaged) over the pairs nearer than ``hinge``: a constant push until they leave it."""
    pairs = lower(distances(signatures, signatures))
    near = pairs[pairs < hinge]
    if reduction == "mean":
        return -near.sum() / max(1, len(near))
    return -near.sum()


def block_target(count: int, clusters: int, p_in: float, p_out: float) -> Tensor:
    """Link probabilities (n, n) of a stochastic block model with consecutive blocks of equal size."""
    group = torch.arange(count) * clusters // count
    return torch.where(group[:, None] == group[None, :], p_in, p_out)


def matched(links: Tensor, target: Tensor) -> Tensor:
    """The rows of ``links`` in the order that comes closest to the rows of ``target`` (Hungarian method).

    Rows alone are moved, as in the reference, which makes it no isomorphism of graphs.
    """
    with torch.no_grad():
        cost = torch.cdist(target.double(), links.double()).square()
        _, order = linear_sum_assignment(cost.cpu().numpy())
    return links[torch.as_tensor(order, device=links.device)]


def block_model(links: Tensor, target: Tensor, clip: float | None = None) -> Tensor:
    """Mean squared error of matched link probabilities (n, n); errors below ``clip`` count as ``clip``."""
    error = (matched(links, target) - target).square()
    return (error if clip is None else error.clamp_min(clip)).mean()


def mixture(signatures: Tensor, means: Tensor, sigmas: Tensor, weights: Tensor) -> Tensor:
    """Mean over pairs of −log p(d), p a mixture of normal distributions of the distances (each (K,))."""
    pairs = lower(distances(signatures, signatures))[:, None]
    log_p = -0.5 * ((pairs - means) / sigmas).square() - sigmas.log() - 0.5 * math.log(2 * math.pi)
    return -(weights.log() + log_p).logsumexp(-1).mean()
