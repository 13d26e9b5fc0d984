"""Sparse dispatch: rows sorted by expert, so that each expert has a contiguous segment, and the way back.

All shapes follow from sizes alone, never from what was routed where: so the same code is counted on the meta device,
and no device waits for another. A pair is one choice of one token, numbered token · K + choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Order = Literal["vanilla", "choice-major", "batch-priority"]


@dataclass(frozen=True)
class Plan:
    """Where every pair goes: a buffer of M rows, those of one expert side by side, what is dropped behind them.

    ``tokens`` (M,): the token in each row; ``ends`` (E,): where each expert's rows end. ``rows`` (T, K): the row of
    each pair, None where a token may have any number of rows (expert choice). ``pairs`` (M,): the pair in each row.
    ``slots`` (T, K): a pair's place in its expert's queue, and ``kept`` (T, K): whether that is below the capacity;
    None where nothing can be dropped.
    """

    tokens: Tensor
    ends: Tensor
    rows: Tensor | None = None
    pairs: Tensor | None = None
    slots: Tensor | None = None
    kept: Tensor | None = None


def plan(
    indices: Tensor,
    experts: int,
    capacity: int | None = None,
    order: Order = "choice-major",
    scores: Tensor | None = None,
    group: int | None = None,
) -> Plan:
    """The plan of chosen experts ``indices``, int64 (T, K); ``capacity`` None drops nothing.

    A queue belongs to an expert and a group of ``group`` tokens (None: all). It fills in token order (``vanilla``),
    with all first choices before all second ones (``choice-major``), or so and by descending ``scores`` (T,)
    (``batch-priority``). Source: V-MoE (arXiv 2106.05974), section 2 and 4.
    """
    tokens, choices = indices.shape
    chosen, total = indices.flatten(), indices.numel()
    if capacity is None:
        pairs = chosen.argsort(stable=True)
        return Plan(pairs // choices, _ends(chosen[pairs], experts), _inverse(pairs).view_as(indices), pairs)
    groups = -(-tokens // (group or max(tokens, 1)))
    queue = indices + experts * (torch.arange(tokens, device=indices.device) // (group or max(tokens, 1)))[:, None]
    slots = _places(queue.flatten(), _sequence(indices, order, scores)).view_as(indices)
    kept = slots < capacity
    most = min(total, experts * capacity * groups + 1)  # one row more than can be kept, for all that is dropped
    behind = torch.where(kept.flatten(), chosen, experts)
    pairs = behind.argsort(stable=True)
    rows = _inverse(pairs).clamp(max=max(most - 1, 0)).view_as(indices)
    return Plan(pairs[:most] // choices, _ends(behind[pairs], experts), rows, pairs[:most], slots, kept)


def expert_choice_plan(tokens: Tensor) -> Plan:
    """The plan in which every expert took its own ``tokens``, int64 (E, C) (expert choice, Zhou et al. 2022)."""
    experts, each = tokens.shape
    return Plan(tokens.flatten(), each * torch.arange(1, experts + 1, device=tokens.device))


def dispatch(x: Tensor, plan: Plan) -> Tensor:
    """Tokens (T, D) to the rows of the buffer (M, D)."""
    if plan.rows is None:
        return x.index_select(0, plan.tokens)
    out: Tensor = _Dispatch.apply(x, plan.tokens, plan.rows, plan.kept)
    return out


def combine(y: Tensor, weights: Tensor, plan: Plan, tokens: int) -> Tensor:
    """The weighted sum of each token's rows: (M, D) to (tokens, D).

    ``weights``: (T, K), or (M,) in expert choice. A dropped pair adds nothing and takes no gradient.
    """
    weights = weights.to(y.dtype)
    if plan.rows is None:
        return y.new_zeros(tokens, y.shape[1]).index_add(0, plan.tokens, y * weights[:, None])
    if plan.kept is not None:
        weights = weights * plan.kept
    out: Tensor = _Combine.apply(y, weights, plan.rows, plan.pairs)
    return out


def _sequence(indices: Tensor, order: Order, scores: Tensor | None) -> Tensor:
    """The pairs in the order in which they ask for a place."""
    pairs = torch.arange(indices.numel(), device=indices.device).view_as(indices)
    if order == "vanilla":
        return pairs.flatten()
    if order == "batch-priority":
        if scores is None:
            raise ValueError("batch priority needs a score for every token")
        pairs = pairs[scores.argsort(descending=True, stable=True)]
    return pairs.T.flatten()


def _places(queue: Tensor, sequence: Tensor) -> Tensor:
    """For each pair, how many pairs of the same queue come earlier in the sequence."""
    asking = queue[sequence]
    by_queue = asking.argsort(stable=True)
    runs = asking[by_queue]
    places = torch.arange(len(runs), device=runs.device) - torch.searchsorted(runs, runs)
    return torch.empty_like(queue).scatter_(0, sequence[by_queue], places)


def _ends(sorted_experts: Tensor, experts: int) -> Tensor:
    return torch.searchsorted(sorted_experts, torch.arange(experts, device=sorted_experts.device), right=True)


def _inverse(permutation: Tensor) -> Tensor:
    counted = torch.arange(len(permutation), device=permutation.device)
    return torch.empty_like(permutation).scatter_(0, permutation, counted)


class _Dispatch(torch.autograd.Function):
    """Gather; its gradient is a sum over each token's own rows, in a fixed order, unlike that of ``index_select``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, rows: Tensor, kept: Tensor | None) -> Tensor:
        """Tokens (T, D) to rows (M, D), as :func:`dispatch` does."""
        ctx.save_for_backward(rows, kept)
        return x.index_select(0, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of rows (M, D): the gradient of tokens (T, D); a dropped pair gives none."""
        rows, kept = ctx.saved_tensors
        weights = kept.to(grad.dtype) if kept is not None else None
        return F.embedding_bag(rows, grad.contiguous(), mode="sum", per_sample_weights=weights), None, None, None


class _Combine(torch.autograd.Function):
    """A weighted sum of rows; the gradient of a row is a gather."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, rows: Tensor, pairs: Tensor) -> Tensor:
        """Rows (M, D) and weights (T, K) to tokens (T, D), as :func:`combine` does."""
        ctx.save_for_backward(y, weights, rows, pairs)
        return F.embedding_bag(rows, y.contiguous(), mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of tokens (T, D): the gradients of rows (M, D) and, if they are wanted, of weights (T, K)."""
        y, weights, rows, pairs = ctx.saved_tensors
        to_y = grad.index_select(0, pairs // rows.shape[1])
        to_weights = None
        if ctx.needs_input_grad[1]:  # of a pair without a row: 0
            found = (y * to_y).sum(1)
            to_weights = found.new_zeros(weights.numel()).index_copy_(0, pairs, found).view_as(weights)
        to_y *= weights.flatten()[pairs][:, None]
        return to_y, to_weights, None, None
