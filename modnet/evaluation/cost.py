"""What a network costs: parameters, multiply-adds and training FLOPs, counted without computing.

A chain is laid out on the meta device, so that counting is exact and takes no memory. MACs are the multiply-adds of
matrix products and convolutions; norms, activations and softmax count nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modnet.chain import Chain, Port, parameter_count
from modnet.layers.expert_attention import ExpertAttention
from modnet.layers.grouped import grouped_linear_flops, grouped_outer_flops
from modnet.layers.grouped_mlp import mlp_backward_flops, mlp_forward_flops
from modnet.layers.head import Head
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoE


@dataclass(frozen=True)
class Cost:
    """Parameters, each storage once, and multiply-adds of the forward pass.

    ``active``: the parameters without those of experts that a token does not choose.
    """

    parameters: int
    macs: int
    active: int


def cost(chain: Chain, port: Port, batch: int = 1) -> Cost:
    """The cost of one input of ``port``, or of a batch; raises ValueError for a port whose sizes are open.

    Places of experts are counted in whole numbers for all tokens of a batch, so there a batch costs less than its
    inputs one by one.
    """
    twin = on_meta(chain).eval().requires_grad_(False)  # the counter looks for gradients, of views as well
    with flop_counter() as counter, torch.no_grad():
        twin(example(port, batch, device="meta"))
    parameters = parameter_count(chain)
    mixtures = [part for part in chain.modules() if isinstance(part, MoE | ExpertAttention | HeadExperts)]
    idle = sum(part.idle_parameters() for part in mixtures)
    return Cost(parameters, counter.get_total_flops() // 2, parameters - idle)


def published_macs(chain: Chain, port: Port) -> int:
    """The multiply-adds of :func:`cost`, and 5 for every element that a LayerNorm normalises.

    So published tables count Vision Transformers (SN-Net, arXiv 2302.06586; Deep Incubation, arXiv 2212.04129):
    softmax, GELU and sums count nothing, and the last norm acts on all tokens before the class token is taken.
    """
    twin = on_meta(chain).eval()
    norms = [0]

    def note(given: Tensor) -> None:
        norms[0] += 5 * given.numel()

    for leaf in twin.leaves:
        if isinstance(leaf, Head):
            leaf.register_forward_hook(lambda _, given, __: note(given[0]))
            continue
        for part in leaf.modules():
            if isinstance(part, nn.LayerNorm):
                part.register_forward_hook(lambda _, __, out: note(out))
    with torch.no_grad():
        twin(example(port, device="meta"))
    return cost(chain, port).macs + norms[0]


def training_flops(chain: Chain, port: Port, input_grad: bool = False) -> float:
    """FLOPs (two a multiply-add) of one input's forward pass and of the backward pass it needs.

    Autograd decides what is needed: no weight gradients in frozen parts, no input gradients before the first trainable
    leaf, no backward pass at all where nothing is trainable. ``input_grad``: something before the chain learns, so the
    gradient goes back to the input, through frozen parts as well. The parts of a chain then add up to the whole.
    Raises ValueError for a port whose sizes are open.
    """
    twin = on_meta(chain).eval()
    with flop_counter() as counter:
        out = twin(example(port, device="meta").requires_grad_(input_grad))
        if out.requires_grad:
            out.sum().backward()
    return float(counter.get_total_flops())


def on_meta(chain: Chain) -> Chain:
    """A twin without storage: same leaves, shapes, dtypes and frozen parts."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in chain.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in chain.buffers()}
    return copy.deepcopy(chain, memo)


def example(port: Port, batch: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Zeros shaped like ``batch`` inputs of an image, tokens, maps or ids port.

    Raises ValueError for another kind of port, or one whose sizes are open.
    """
    if port.kind == "image" and None not in (port["channels"], port["size"]):
        return torch.zeros(batch, port["channels"], port["size"], port["size"], device=device)
    if port.kind == "tokens" and None not in (port["width"], port["prefix"], port["grid"]):
        down, across = port["grid"]
        return torch.zeros(batch, port["prefix"] + down * across, port["width"], device=device)
    if port.kind == "maps" and None not in (port["channels"], port["height"], port["width"]):
        return torch.zeros(batch, port["channels"], port["height"], port["width"], device=device)
    if port.kind == "ids" and port["length"] is not None:
        return torch.zeros(batch, port["length"], dtype=torch.int64, device=device)
    raise ValueError(f"an example input needs an image, tokens, maps or ids port with all sizes, not {port}")


def flop_counter() -> FlopCounterMode:
    """Torch's counter, with formulas for kernels that it misses or counts by how they compute."""
    aten = torch.ops.aten
    own = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
        aten._scaled_dot_product_fused_attention_overrideable_backward: _attention_backward_flops,
        aten._grouped_mm: _grouped_flops,
        torch.ops.modnet.grouped_linear: grouped_linear_flops,
        torch.ops.modnet.grouped_outer: grouped_outer_flops,
        torch.ops.modnet.grouped_mlp: mlp_forward_flops,
        torch.ops.modnet.grouped_mlp_backward: mlp_backward_flops,
        aten.convolution_backward: _convolution_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products a head: scores (q, k) and mixing (scores, v)."""
    batch, heads, queries, width = q
    keys, out = k[-2], v[-1]
    return 2 * batch * heads * queries * keys * (width + out)


def _attention_backward_flops(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products for each one's gradients; scores that a kernel computes anew do not count."""
    batch, heads, queries, width = q
    keys, out = k[-2], v[-1]
    return 2 * batch * heads * queries * keys * (2 * width + 2 * out)


def _convolution_backward_flops(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **__: Any,
) -> int:
    """As many products for each of the two gradients as going forward; torch's own formula overlooks groups."""
    places = x if transposed else grad
    return 2 * x[0] * prod(places[2:]) * prod(weight) * (wanted[0] + wanted[1])


def _grouped_flops(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """Rows (n, in) of ``a`` times one matrix (in, out) each of a stack ``b`` (groups, in, out)."""
    if len(a) == 2 and len(b) == 3:
        return 2 * a[0] * a[1] * b[2]
    if len(a) == 3 and len(b) == 3:
        return 2 * a[0] * a[1] * a[2] * b[2]
    return 2 * a[-2] * a[-1] * b[-1]
