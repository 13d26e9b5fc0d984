"""Linear layers of experts on rows that are sorted by expert: each expert's matrix meets its own segment.

Where torch's grouped product serves (bf16 on a GPU), one kernel does all experts and no device is waited for; elsewhere
there is one product per expert, for which the ends of the segments have to be known on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNED = 8  # bf16 numbers in 16 bytes, by which the kernel wants rows to begin


@torch.library.custom_op("modnet::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """Each expert's linear layer on its own rows: x (M, in), weight (E, out, in), bias (E, out) to (M, out).

    Expert e has the rows from ``ends[e - 1]`` to ``ends[e]``; rows behind the last end give zeros. A custom operator,
    so that shapes and FLOPs are known without data.
    """
    if grouped_mm_serves(x, weight.shape[1]):
        owner = _owners(len(x), ends)
        out = F.grouped_mm(x, weight.mT, offs=ends.to(torch.int32))
        if bias is not None:
            out += F.pad(bias, (0, 0, 0, 1))[owner]
        return out.masked_fill_((owner == len(ends))[:, None], 0)
    out = x.new_empty(len(x), weight.shape[1])
    for e, rows in segments(ends):
        linear_into(out[rows], x[rows], weight[e], None if bias is None else bias[e])
    out[int(ends[-1]) :] = 0
    return out


@torch.library.custom_op("modnet::grouped_outer", mutates_args=())
def grouped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of each expert's weight (E, out, in) and bias (E, out), from grad (M, out) and x (M, in)."""
    if grouped_mm_serves(x, grad.shape[1]):
        mine = _owners(len(x), ends) == torch.arange(len(ends), device=x.device)[:, None]
        return F.grouped_mm(grad.t(), x, offs=ends.to(torch.int32)), mine.to(grad.dtype) @ grad
    weight = grad.new_empty(len(ends), grad.shape[1], x.shape[1])
    bias = grad.new_empty(len(ends), grad.shape[1])
    for e, rows in segments(ends):  # without rows: sums of nothing, zeros
        torch.mm(grad[rows].t(), x[rows], out=weight[e])
        torch.sum(grad[rows], 0, out=bias[e])
    return weight, bias


def grouped_mm_serves(x: Tensor, out: int) -> bool:
    """Whether torch's grouped product takes rows x (M, in) to ``out`` numbers each."""
    return x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % ALIGNED == 0 and out % ALIGNED == 0


def _owners(rows: int, ends: Tensor) -> Tensor:
    """The expert of each row; E for those behind the last end."""
    return torch.searchsorted(ends, torch.arange(rows, device=ends.device), right=True)


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose result, (M, out) from x (M, in) and weight (out, in), is written into ``out``."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def segments(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Every expert and its rows, which may be none."""
    start = 0
    for e, end in enumerate(ends.tolist()):
        yield e, slice(start, end)
        start = end


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    experts = ends.shape[0]
    return grad.new_empty(experts, grad.shape[1], x.shape[1]), grad.new_empty(experts, grad.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ends = inputs
    ctx.save_for_backward(x, weight, ends)
    ctx.biased = bias is not None


def _grouped_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    to_x = grouped_linear(grad, weight.mT, None, ends) if ctx.needs_input_grad[0] else None
    if not any(ctx.needs_input_grad[1:3]):
        return to_x, None, None, None
    to_weight, to_bias = grouped_outer(grad, x, ends)
    return to_x, to_weight, to_bias if ctx.biased else None, None


grouped_linear.register_autograd(_grouped_backward, setup_context=_keep)


def grouped_linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Two FLOPs a multiply-add: every row meets one expert's matrix, whichever that is."""
    return int(2 * x[0] * weight[1] * weight[2])


def grouped_outer_flops(grad: Any, x: Any, *_: Any, **__: Any) -> int:
    """As many as forward."""
    return int(2 * x[0] * x[1] * grad[1])
