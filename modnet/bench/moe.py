"""The mixture of experts, forward and backward, against a dense perceptron of equal multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.bench.machine import bf16_missing
from modnet.bench.pairs import Aim, Call, Comparison, Finding, Measure, Skipped, compare, faster, turns, within
from modnet.chain import Pass
from modnet.evaluation.cost import flop_counter
from modnet.layers.dispatch import dispatch, plan
from modnet.layers.mlp import MLP
from modnet.layers.moe import MoE
from modnet.randomness import Key

TOKENS, WIDTH, HIDDEN, EXPERTS = 8192, 384, 1536, 8
NARROW = 64
DENSE = {  # dtype and experts of a token: how much longer than a dense perceptron at most
    (torch.float32, 1): within(1.03),
    (torch.float32, 2): within(1.05),
    (torch.bfloat16, 1): within(1.15),
    (torch.bfloat16, 2): within(1.15),
}


class OneHot(nn.Module):
    """The same mixture, every token through a place in every expert's buffer, by products with one-hot matrices."""

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Tokens (B, N, width) to the same, equal to the dropless layer (GShard, Lepikhin et al. 2020)."""
        layer, flat = self.layer, x.flatten(0, 1)
        choice = layer.gate(flat)
        chosen = F.one_hot(choice.indices, layer.count)  # (T, K, E)
        places = chosen.sum(1).cumsum(0)[:, None] - 1
        most = int(places.max()) + 1
        slots = F.one_hot((places * chosen).sum(-1), most).to(x.dtype)
        mask = torch.einsum("tke,tkc->tec", chosen.to(x.dtype), slots)
        weights = torch.einsum("tk,tke,tkc->tec", choice.weights.to(x.dtype), chosen.to(x.dtype), slots)
        fc1, fc2 = layer.experts.fc1, layer.experts.fc2
        h = F.gelu(torch.baddbmm(fc1.bias[:, None], torch.einsum("tec,td->ecd", mask, flat), fc1.weight.mT))
        given = torch.baddbmm(fc2.bias[:, None], h, fc2.weight.mT)
        return torch.einsum("tec,ecd->td", weights, given).view(x.shape)


def moe(repeats: int) -> list[Finding]:
    """Top 1 and top 2 of 8 experts in float32 and bfloat16; Mixtral's layer; one-hot products; what routing takes."""
    found: list[Finding] = []
    for (dtype, top_k), aim in DENSE.items():
        name = f"moe top {top_k} {str(dtype).removeprefix('torch.')}"
        if dtype == torch.bfloat16 and (why := bf16_missing()):
            found.append(Skipped(name, why))
            continue
        found += _against_dense(name, top_k, dtype, aim, repeats)
    return [*found, mixtral(repeats), *one_hot(repeats), routing(repeats)]


def _against_dense(name: str, top_k: int, dtype: torch.dtype, aim: Aim, repeats: int) -> list[Finding]:
    """The layer, and what is left of its lead or lag where rows are sorted already."""
    x = _tokens(32, TOKENS // 32, WIDTH).to(dtype).detach().requires_grad_()
    layer, dense = _layers(top_k, dtype)
    whole, inside = _whole_and_inside(layer, x)
    own, alone, other = turns([whole, inside, _step(dense, dense, x)], repeats)
    ratios = tuple(b / a for a, b in zip(alone, other, strict=True))
    told = "the same experts on rows that are sorted already"
    return [
        Comparison(name, f"{EXPERTS} experts, top {top_k}", "dense MLP of equal FLOPs", own, other, aim),
        Measure(f"{name}, experts alone", told, "times as fast as the dense MLP", ratios),
    ]


def _whole_and_inside(layer: MoE, x: Tensor) -> tuple[Call, Call]:
    """A step of the layer, and one of its experts alone."""
    flat, experts = x.detach().flatten(0, 1), layer.experts
    where = plan(layer.gate(flat).indices, EXPERTS)
    rows = dispatch(flat, where).requires_grad_()
    return _step(layer, _passing(layer), x), _step(experts, lambda r: experts(r, where.ends), rows)


def mixtral(repeats: int) -> Finding:
    """SwiGLU experts, top 2 of 8, against the sparse block of Hugging Face's Mixtral as that library runs it."""
    name = "moe Mixtral"
    try:
        theirs = mixtral_block(WIDTH, HIDDEN, EXPERTS, 2)
    except ImportError:
        return Skipped(name, "transformers is not installed")
    x = _tokens(32, TOKENS // 32, WIDTH)
    layer = swiglu_layer(WIDTH, HIDDEN, EXPERTS, 2)
    ours = (f"{EXPERTS} SwiGLU experts, sorted", _step(layer, _passing(layer), x))
    baseline = ("transformers' Mixtral block", _step(theirs, only_tokens(theirs), x))
    return compare(name, ours, baseline, repeats, faster(1.0))


def mixtral_block(width: int, hidden: int, experts: int, top_k: int) -> Any:
    """The library's block, with small random weights; raises ImportError where transformers is not installed."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=width, intermediate_size=hidden, num_local_experts=experts, num_experts_per_tok=top_k
    )
    config._experts_implementation = "grouped_mm"  # what a whole model chooses where nothing is asked for
    with Key.of(0, "bench mixtral").forked():
        block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():  # some of which the library leaves uninitialised
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=Key.of(0).generator()))
    return block.train()


def only_tokens(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """Tokens (B, N, width) to the same; some versions of the block give their router's logits as well."""

    def forward(x: Tensor) -> Tensor:
        out = block(x)
        tokens: Tensor = out[0] if isinstance(out, tuple) else out
        return tokens

    return forward


def swiglu_layer(width: int, hidden: int, experts: int, top_k: int) -> MoE:
    """Our layer of the same kind: softmax over all experts, the top ones renormalised, no biases."""
    with Key.of(0, "bench moe").forked():
        return MoE(width, hidden, experts, top_k, {"name": "renormalised"}, "swiglu", bias=False)


def one_hot(repeats: int) -> list[Finding]:
    """Products with one-hot matrices, which take the square of the tokens, and how many more FLOPs they are."""
    layer, _ = _layers(1, torch.float32)
    x = _tokens(32, TOKENS // 32, WIDTH)
    slow = OneHot(layer)
    ours, theirs = _step(layer, _passing(layer), x), _step(slow, _passing(slow), x)
    name, more = "moe one-hot", _flops(theirs) / _flops(ours)
    return [
        compare(name, (f"{EXPERTS} experts, sorted", ours), ("one-hot products", theirs), repeats, faster(8)),
        Measure(f"{name}, by FLOPs", "one-hot products", "times as many FLOPs as sorted experts", (more,)),
    ]


def _flops(step: Call) -> int:
    with flop_counter() as counter:
        step()
    return int(counter.get_total_flops())


def routing(repeats: int) -> Finding:
    """What share of a narrow layer's time is not spent in its experts: gate, sorting, dispatch and combining."""
    with Key.of(0, "bench moe").forked():
        layer = MoE(NARROW, 4 * NARROW, EXPERTS, 2, {"name": "top-k-softmax"})
    x = _tokens(32, TOKENS // 32, NARROW)
    whole, inside = turns(_whole_and_inside(layer, x), repeats)
    shares = tuple(1 - part / all_of_it for all_of_it, part in zip(whole, inside, strict=True))
    return Measure("moe routing", f"router, sorting and combining at width {NARROW}", "of the layer's time", shares)


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=Key.of(0).generator()).requires_grad_()


def _passing(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x, Pass())


def _layers(top_k: int, dtype: torch.dtype) -> tuple[MoE, MLP]:
    router = "softmax-top-k" if top_k == 1 else "top-k-softmax"
    with Key.of(0, "bench moe").forked():
        layer = MoE(WIDTH, HIDDEN, EXPERTS, top_k, {"name": router}).to(dtype)
        return layer, MLP(WIDTH, HIDDEN * top_k).to(dtype)


def _step(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward, as a training step has them: no gradients are left of the step before."""

    def step() -> None:
        module.zero_grad()
        x.grad = None
        forward(x).sum().backward()

    return step
