"""The mixture of experts, forward and backward, against a dense perceptron of equal multiply-adds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.bench.pairs import Comparison, compare
from modnet.chain import Pass
from modnet.layers.mlp import MLP
from modnet.layers.moe import MoE
from modnet.randomness import Key

TOKENS, WIDTH, HIDDEN, EXPERTS = 8192, 384, 1536, 8


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


def moe(repeats: int) -> list[Comparison]:
    """Top 1 and top 2 of 8 experts in float32 and bfloat16; one-hot products, which are far slower, once."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for top_k in (1, 2):
            x = torch.randn(32, TOKENS // 32, WIDTH, generator=Key.of(0).generator()).to(dtype).requires_grad_()
            layer, dense = _layers(top_k, dtype)
            name = f"moe top {top_k} {str(dtype).removeprefix('torch.')}"
            ours = (f"{EXPERTS} experts, sorted", _step(lambda x, m=layer: m(x, Pass()), x))  # type: ignore[misc]
            found.append(compare(name, ours, ("dense MLP of equal FLOPs", _step(dense, x)), repeats))
    layer, _ = _layers(2, torch.float32)
    x = torch.randn(8, 128, WIDTH, generator=Key.of(0).generator()).requires_grad_()
    slow, ours = OneHot(layer), ("8 experts, sorted, 1024 tokens", _step(lambda x: layer(x, Pass()), x))
    return [*found, compare("moe one-hot", ours, ("one-hot products", _step(lambda x: slow(x, Pass()), x)), repeats)]


def _layers(top_k: int, dtype: torch.dtype) -> tuple[MoE, MLP]:
    router = "softmax-top-k" if top_k == 1 else "top-k-softmax"
    with Key.of(0, "bench moe").forked():
        layer = MoE(WIDTH, HIDDEN, EXPERTS, top_k, {"name": router}).to(dtype)
        return layer, MLP(WIDTH, HIDDEN * top_k).to(dtype)


def _step(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward, as a training step has them."""
    return lambda: forward(x).sum().backward()
