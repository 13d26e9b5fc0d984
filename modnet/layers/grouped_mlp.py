"""Perceptrons of experts on rows that are sorted by expert, one expert after another.

Between the layers only the inner layers' outputs are kept for the backward pass: the activation behind them is computed
once more, and its gradient lives in a buffer as large as the longest segment. That is half of what one operator after
another keeps there; on a CPU as much less fresh memory is asked for, which costs more than the second GELU.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modnet.layers.grouped import linear_into, segments

Activation = Literal["gelu", "gelu-tanh", "swiglu"]


def grouped_mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], ends: Tensor, activation: Activation) -> Tensor:
    """Each expert's perceptron on its own rows, (M, width) to (M, out); rows behind the last end give zeros.

    Expert e has the rows from ``ends[e - 1]`` to ``ends[e]``. ``weights``, each (E, out, in): of the first layer, with
    ``swiglu`` of the one that it gates (Shazeer 2020), and of the last one; ``biases``: (E, out) of each, or none.
    """
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    out: Tensor = _GroupedMLP.apply(x, ends, activation, keep, len(weights), *weights, *biases)
    return out


class _GroupedMLP(torch.autograd.Function):
    """The two operators below, joined."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ends: Tensor, activation: str, keep: bool, layers: int, *parameters: Tensor
    ) -> Tensor:
        """As :func:`grouped_mlp`; of the ``parameters`` the first ``layers`` are weights."""
        weights, biases = list(parameters[:layers]), list(parameters[layers:])
        found: list[Tensor] = mlp_forward(x, weights, biases, ends, activation, keep)
        ctx.save_for_backward(x, ends, *weights, *found[1:])
        ctx.activation, ctx.layers, ctx.biased = activation, layers, bool(biases)
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of rows (M, out): gradients of x and of all parameters, if any of them wants one."""
        x, ends, *rest = ctx.saved_tensors
        weights, hidden = rest[: ctx.layers], rest[ctx.layers :]
        wanted = (ctx.needs_input_grad[0], any(ctx.needs_input_grad[5:]))
        found = mlp_backward(grad.contiguous(), x, hidden, weights, ends, ctx.activation, *wanted, ctx.biased)
        to_x = found.pop(0) if wanted[0] else None
        to_parameters = found if wanted[1] else [None] * (ctx.layers * (1 + ctx.biased))
        return to_x, None, None, None, None, *to_parameters


@torch.library.custom_op("modnet::grouped_mlp", mutates_args=())
def mlp_forward(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], ends: Tensor, activation: str, keep: bool
) -> list[Tensor]:
    """The output (M, out) and, if they are to be kept, the outputs of the inner layers, (M, hidden) each."""
    bias: list[Tensor | None] = [*biases] if biases else [None] * len(weights)
    parts, width = list(segments(ends)), weights[0].shape[1]
    longest = _longest(parts)
    hidden = [x.new_empty(len(x) if keep else longest, width) for _ in weights[:-1]]
    out, active = x.new_empty(len(x), weights[-1].shape[1]), x.new_empty(longest, width)
    for e, rows in parts:
        count = rows.stop - rows.start
        own = [h[rows if keep else slice(count)] for h in hidden]
        for h, w, b in zip(own, weights[:-1], bias[:-1], strict=True):
            linear_into(h, x[rows], w[e], None if b is None else b[e])
        a = _activate(own, activation, active[:count])
        linear_into(out[rows], a, weights[-1][e], None if bias[-1] is None else bias[-1][e])
    out[parts[-1][1].stop :] = 0
    return [out, *hidden] if keep else [out]


@torch.library.custom_op("modnet::grouped_mlp_backward", mutates_args=())
def mlp_backward(
    grad: Tensor,
    x: Tensor,
    hidden: list[Tensor],
    weights: list[Tensor],
    ends: Tensor,
    activation: str,
    to_x: bool,
    to_weights: bool,
    biased: bool,
) -> list[Tensor]:
    """Gradients of x, if wanted, and, if wanted, of all weights and of all biases there are, from grad (M, out)."""
    last, parts = len(weights) - 1, list(segments(ends))
    active, passed = (x.new_empty(_longest(parts), weights[0].shape[1]) for _ in range(2))
    of_x = torch.empty_like(x) if to_x else None
    of_weights = [torch.empty_like(w) for w in weights] if to_weights else []
    of_biases = [w.new_empty(w.shape[:2]) for w in weights] if to_weights and biased else []

    def learn(layer: int, e: int, d: Tensor, given: Tensor) -> None:
        """Gradients of one expert's layer, from that of its output and what it was given."""
        if of_weights:
            torch.mm(d.t(), given, out=of_weights[layer][e])
        if of_biases:
            torch.sum(d, 0, out=of_biases[layer][e])

    for e, rows in parts:
        count, g = rows.stop - rows.start, grad[rows]
        own, a = [h[rows] for h in hidden], active[:count]
        d = torch.mm(g, weights[last][e], out=passed[:count])
        if to_weights:
            learn(last, e, g, _activate(own, activation, a))
        for i, d_i in enumerate(_activate_backward(d, own, activation, a)):
            learn(i, e, d_i, x[rows])
            if of_x is not None:
                of_x[rows].addmm_(d_i, weights[i][e], beta=float(i > 0))
    if of_x is not None:
        of_x[parts[-1][1].stop :] = 0
    return [*([] if of_x is None else [of_x]), *of_weights, *of_biases]


def _longest(parts: list[tuple[int, slice]]) -> int:
    """Rows of the expert that has most."""
    return max(int(rows.stop - rows.start) for _, rows in parts)


def _activate(hidden: list[Tensor], activation: str, out: Tensor) -> Tensor:
    """What the last layer is given."""
    if activation == "swiglu":
        gated: Tensor = torch.ops.aten.silu.out(hidden[0], out=out).mul_(hidden[1])
        return gated
    active: Tensor = torch.ops.aten.gelu.out(hidden[0], approximate=_approximate(activation), out=out)
    return active


def _activate_backward(grad: Tensor, hidden: list[Tensor], activation: str, room: Tensor) -> list[Tensor]:
    """Gradients of the inner layers' outputs, in place of ``grad`` and, with two of them, in ``room`` as well."""
    if activation != "swiglu":
        kind = _approximate(activation)
        torch.ops.aten.gelu_backward.grad_input(grad, hidden[0], approximate=kind, grad_input=grad)
        return [grad]
    of_gated = torch.ops.aten.silu.out(hidden[0], out=room).mul_(grad)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(hidden[1]), hidden[0], grad_input=grad)
    return [grad, of_gated]


def _approximate(activation: str) -> str:
    return "tanh" if activation == "gelu-tanh" else "none"


@mlp_forward.register_fake
def _(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], ends: Tensor, activation: str, keep: bool
) -> list[Tensor]:
    hidden = [x.new_empty(x.shape[0], w.shape[1]) for w in weights[:-1]] if keep else []
    return [x.new_empty(x.shape[0], weights[-1].shape[1]), *hidden]


@mlp_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    hidden: list[Tensor],
    weights: list[Tensor],
    ends: Tensor,
    activation: str,
    to_x: bool,
    to_weights: bool,
    biased: bool,
) -> list[Tensor]:
    of_parameters = [torch.empty_like(w) for w in weights] + [w.new_empty(w.shape[:2]) for w in weights if biased]
    return [*([torch.empty_like(x)] if to_x else []), *(of_parameters if to_weights else [])]


def mlp_forward_flops(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Two FLOPs a multiply-add: every row meets the matrices of one expert, whichever that is."""
    return int(sum(2 * x[0] * out * given for _, out, given in weights))


def mlp_backward_flops(
    grad: Any, x: Any, hidden: Any, weights: Any, ends: Any, kind: Any, to_x: bool, to_weights: bool, *_: Any, **__: Any
) -> int:
    """As many as forward for the weights' gradients, and for those of the rows; the last layer's always have to be."""
    products = [2 * x[0] * out * given for _, out, given in weights]
    return int(to_weights * sum(products) + to_x * sum(products[:-1]) + products[-1])
