"""Low-rank experts on the projections of attention: routed (LoRA-Mixer), or a group that is summed (PEGO)."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.chain import Chain, Module, Pass
from modnet.errors import RequestError
from modnet.layers import balance
from modnet.layers.initialise import initialise_linear

Target = Literal["q", "k", "v", "o"]
FUSED = ("q", "k", "v")  # thirds of the fused projection, in order
Norm = Literal["l1", "fro2"]


@dataclass(frozen=True)
class Weights:
    """How much each of E adapters counts for T tokens, (T, E); the router's probabilities and choices (T, K)."""

    mix: Tensor
    probs: Tensor
    indices: Tensor


class LowRank(nn.Module):
    """E adapters of one projection: rows (T, given) to what they add, (T, out): scale · sum of w_e B_e A_e x.

    A (E, rank, given) starts Kaiming-uniform, B (E, out, rank) at zero, so that nothing is added at first. With
    ``top_k`` a bias-free linear router weighs them by softmax over all while training (``soft``), by the ``top_k``
    largest, divided by their sum, in evaluation. ``hard_soft`` takes these while training as well, with the gradient of
    the soft ones. Without ``top_k`` all weights are 1. Source: arXiv 2507.00029, 2407.15085.
    """

    def __init__(
        self, given: int, out: int, experts: int, rank: int, scale: float, top_k: int | None, hard_soft: bool = False
    ) -> None:
        super().__init__()
        if top_k is not None and top_k > experts:
            raise RequestError(f"top_k {top_k} asks for more adapters than there are ({experts})")
        self.scale, self.top_k, self.hard_soft = scale, top_k, hard_soft
        bound = 1 / math.sqrt(given)  # Kaiming-uniform with a = √5
        self.a = nn.Parameter(torch.empty(experts, rank, given).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(experts, out, rank))
        self.router = nn.Linear(given, experts, bias=False) if top_k is not None else None
        if self.router is not None:
            initialise_linear(self.router)

    def weigh(self, x: Tensor) -> Weights | None:
        """The weights of the adapters for rows (T, given); None where all are 1."""
        if self.router is None or self.top_k is None:
            return None
        probs = self.router(x).softmax(-1)
        best, indices = probs.topk(self.top_k, dim=-1)
        if self.training and not self.hard_soft:
            return Weights(probs, probs, indices)
        hard = torch.zeros_like(probs).scatter(-1, indices, best / best.sum(-1, keepdim=True))
        if self.training:
            hard = probs + (hard - probs).detach()
        return Weights(hard, probs, indices)

    def forward(self, x: Tensor, weights: Weights | None) -> Tensor:
        """Two products for all adapters together, as they are narrow."""
        inner = F.linear(x, self.a.flatten(0, 1)).unflatten(-1, self.a.shape[:2])
        if weights is not None:
            inner = inner * weights.mix[..., None]
        out: Tensor = F.linear(inner.flatten(-2), self.b.transpose(0, 1).flatten(1))
        return self.scale * out

    def delta(self) -> Tensor:
        """What all adapters with weight 1 add to the projection's weight, (out, given)."""
        return self.scale * torch.einsum("eor,erg->og", self.b, self.a)


def specialisation(weights: Weights, balance_weight: float, entropy: float) -> Tensor:
    """LoRA-Mixer's loss of one router: balance · sum of p̄_e f̄_e, and ``entropy`` · mean entropy of a token's choice.

    p̄: mean probability; f̄: share of the choices. A positive ``entropy`` makes tokens decide; the paper prints a minus.
    """
    share = balance.switch(weights.probs, weights.indices) / weights.probs.shape[-1]
    return balance_weight * share + entropy * balance.mean_entropy(weights.probs)


def orthogonality(weight: Tensor, a: Tensor, b: Tensor, norm: Norm = "l1") -> Tensor:
    """PEGO's two losses of one projection: overlap of each update with the weight, and of every two updates.

    ``weight`` (out, given), ``a`` (E, r, given), ``b`` (E, out, r): the sum of ‖W ΔW_iᵀ‖ and, over i < j,
    ‖ΔW_i ΔW_jᵀ‖ with ΔW = B A, as the sum of absolute values (``l1``) or of squares. Source: arXiv 2407.15085.
    """
    size = torch.abs if norm == "l1" else torch.square
    total = size(torch.einsum("og,erg,epr->eop", weight, a, b)).sum()
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            total = total + size(b[i] @ (a[i] @ a[j].T) @ b[j].T).sum()
    return total


class Adapted(Module):
    """A block whose attention projections have adapters; what the block itself computes stays as it is.

    ``inner``: a chain of that one block, with linear layers ``attn.qkv`` and ``attn.proj``. ``adapters``:
    ``{"targets": [q, k, v, o], "experts", "rank", "scale", "top_k", "hard_soft", "balance", "entropy", "orthogonal",
    "norm"}``. Losses go to ``ctx.losses`` while training, each router's load to ``ctx.stats``. Raises RequestError for
    a block without such layers.
    """

    def __init__(self, inner: Chain, adapters: dict[str, Any]) -> None:
        super().__init__()
        self.takes, self.gives, self.inner = inner.takes, inner.gives, inner
        self.spec = adapters
        sizes = (adapters["experts"], adapters["rank"], adapters["scale"], adapters["top_k"], adapters["hard_soft"])
        made = {}
        for target in adapters["targets"]:
            layer = self.layer(target)
            out = layer.out_features // (3 if target in FUSED else 1)
            made[target] = LowRank(layer.in_features, out, *sizes)
        self.adapters = nn.ModuleDict(made)

    def layer(self, target: str) -> nn.Linear:
        """The linear layer that a target is, or is a third of."""
        name = "attn.qkv" if target in FUSED else "attn.proj"
        try:
            found = self.inner.leaves[0].get_submodule(name)
        except AttributeError:
            found = None
        if not isinstance(found, nn.Linear):
            leaf = type(self.inner.leaves[0]).__name__
            raise RequestError(f"adapters stand on attn.qkv and attn.proj of transformer blocks, which {leaf} lacks")
        return found

    def rows(self, target: str) -> slice:
        """The rows of the layer's output that belong to a target."""
        size = self.layer(target).out_features // (3 if target in FUSED else 1)
        start = FUSED.index(target) * size if target in FUSED else 0
        return slice(start, start + size)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Tokens (B, N, width) to the same; the hooks that add the adapters' part last as long as this pass."""
        with ExitStack() as stack:
            for fused in (True, False):
                targets = [t for t in self.adapters if (t in FUSED) == fused]
                if targets:
                    hook = self._adder(targets, ctx)
                    stack.callback(self.layer(targets[0]).register_forward_hook(hook).remove)
            out: Tensor = self.inner.leaves[0](x, ctx)
        if self.training and self.spec["orthogonal"]:
            ctx.losses[f"{ctx.leaf}.orthogonal"] = self.spec["orthogonal"] * self.overlap()
        return out

    def _adder(self, targets: list[str], ctx: Pass) -> Any:
        """A hook for this pass that adds what adapters give to what their layer gives."""

        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            parts = {self.rows(t).start: self._added(t, inputs[0], ctx) for t in targets}
            one = next(iter(parts.values()))
            starts = range(0, output.shape[-1], one.shape[-1])
            added = [parts.get(start, one.new_zeros(()).expand_as(one)) for start in starts]
            return output + (torch.cat(added, dim=-1) if len(added) > 1 else added[0])

        return add

    def _added(self, target: str, x: Tensor, ctx: Pass) -> Tensor:
        part = self.adapters[target]
        assert isinstance(part, LowRank)
        flat = x.flatten(0, -2)
        weights = part.weigh(flat)
        if weights is not None:
            self._report(target, weights, ctx)
        out: Tensor = part(flat, weights).view(*x.shape[:-1], -1)
        return out

    def _report(self, target: str, weights: Weights, ctx: Pass) -> None:
        """Loss and statistics of one router, under the leaf's position."""
        spec, name = self.spec, f"{ctx.leaf}.{target}"
        ctx.stats[f"{name}.load"] = weights.mix.detach().mean(0)
        if self.training and (spec["balance"] or spec["entropy"]):
            ctx.losses[f"{name}.router"] = specialisation(weights, spec["balance"], spec["entropy"])

    def overlap(self) -> Tensor:
        """PEGO's loss over all targets."""
        found = []
        for target, part in self.adapters.items():
            assert isinstance(part, LowRank)
            weight = self.layer(target).weight[self.rows(target)]
            found.append(orthogonality(weight, part.a, part.b, self.spec["norm"]))
        return torch.stack(found).sum()
