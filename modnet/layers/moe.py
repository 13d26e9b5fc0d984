"""The sparse mixture of experts, and the transformer block that holds one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.layers import balance
from modnet.layers.block import AttentionBlock, Block
from modnet.layers.dispatch import Plan, combine, dispatch, expert_choice_plan, grouped_linear, plan
from modnet.layers.exchange import PerExpert, held
from modnet.layers.initialise import initialise_linears
from modnet.layers.routers import Choice, ExpertChoiceGate, Gate
from modnet.recipe.routers import NO_GRADIENT
from modnet.registry import ROUTERS

Activation = Literal["gelu", "gelu-tanh", "swiglu"]


class StackedLinear(PerExpert):
    """A linear layer for each expert: weight (E, out, in), bias (E, out); each starts as torch's Linear does."""

    bias: Tensor  # None where there is none, as in torch's Linear

    def __init__(self, experts: int, given: int, out: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(given)
        self.weight = nn.Parameter(torch.empty(experts, out, given).uniform_(-bound, bound))
        self.register_parameter("bias", nn.Parameter(torch.zeros(experts, out)) if bias else None)

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        bias: Tensor | None = getattr(self, "bias", None)
        weight, bias = held(self.weight), None if bias is None else held(bias)
        parts: tuple[Tensor, Tensor, Tensor | None]
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # which does not know our operator
            dtype = torch.get_autocast_dtype(x.device.type)
            parts = (x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        else:
            parts = (x.to(weight.dtype), weight, bias)
        out: Tensor = grouped_linear(*parts, ends)
        return out


class Experts(PerExpert):
    """Perceptrons side by side: Linear, GELU, Linear on the rows of each expert, (M, width) to (M, width).

    With ``swiglu`` the first layer passes through SiLU and gates a second one, ``up`` (Shazeer 2020).
    """

    def __init__(
        self, width: int, hidden: int, experts: int, activation: Activation = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        self.approximate: Literal["none", "tanh"] = "tanh" if activation == "gelu-tanh" else "none"
        self.fc1 = StackedLinear(experts, width, hidden, bias)
        self.fc2 = StackedLinear(experts, hidden, width, bias)
        self.up = StackedLinear(experts, width, hidden, bias) if activation == "swiglu" else None

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        first: Tensor = self.fc1(x, ends)
        hidden = F.gelu(first, approximate=self.approximate) if self.up is None else F.silu(first) * self.up(x, ends)
        out: Tensor = self.fc2(hidden, ends)
        return out


class MoE(nn.Module):
    """A router and its experts: tokens (B, N, width) to the same.

    ``router``: parameters of a registered router as plain values. Raises RequestError for a router that could not
    learn, or more choices than experts. Losses go to ``ctx.losses`` while training, the share of pairs of each expert
    (E,), the mean entropy (nats) and the dropped share of pairs to ``ctx.stats``.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        top_k: int,
        router: Mapping[str, Any],
        activation: Activation = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.params = ROUTERS.read(dict(router))
        if top_k > experts:
            raise RequestError(f"top_k {top_k} asks for more experts than there are ({experts})")
        if not self.params.learns(top_k):
            raise RequestError(NO_GRADIENT.format(name=self.params.name))
        self.count, self.top_k = experts, top_k
        self.gate: Gate = ROUTERS.get(self.params.name).resolve()(width, experts, top_k, self.params)
        self.experts = Experts(width, hidden, experts, activation, bias)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Route, dispatch, compute, combine; a dropped token gives zeros."""
        flat = x.flatten(0, 1)
        exact = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
        keys = self.experts.fc1.weight if self.gate.by_keys else None
        with exact:
            choice = self.gate(flat, self.noise(x, ctx), keys)
        out, where = self.mix(flat, choice, x.shape[1])
        self.report(choice, where, x.shape[1], ctx)
        return out.view(x.shape)

    def noise(self, x: Tensor, ctx: Pass) -> Tensor | None:
        """Standard normal noise (B·N, E), drawn per sample; None where none is wanted."""
        if not (self.training and ctx.stochastic and self.gate.noisy):
            return None
        ids = torch.arange(len(x), device=x.device) if ctx.ids is None else ctx.ids
        return ctx.rng("router").normal(ids, x.shape[1] * self.count).view(-1, self.count)

    def mix(self, x: Tensor, choice: Choice, tokens: int) -> tuple[Tensor, Plan]:
        """The experts' weighted sum for tokens (T, width) of images of so many ``tokens``, and the plan followed."""
        group = self.group(tokens, len(x))
        capacity = self.capacity(group or len(x))
        if isinstance(self.gate, ExpertChoiceGate):
            taken, weights = self.gate.taken(choice, len(x) if capacity is None else capacity)
            where, weights = expert_choice_plan(taken), weights.flatten()
        else:
            weights = choice.weights
            scores = choice.noisy.softmax(-1).amax(-1)
            where = plan(choice.indices, self.count, capacity, self.params.order, scores, group)
        given = self.experts(dispatch(x, where), where.ends)
        return combine(given, weights, where, len(x)), where

    def group(self, tokens: int, total: int) -> int | None:
        """Tokens that share places: those of ``group`` images, or all where the batch does not divide."""
        size = (self.params.group or 0) * tokens
        return size if size and total % size == 0 and not isinstance(self.gate, ExpertChoiceGate) else None

    def capacity(self, tokens: int) -> int | None:
        """Places of an expert for a group of tokens, ``ceil(T·K·factor / E)`` rounded up; None: no limit."""
        params = self.params
        factor = params.capacity if self.training or params.capacity_eval is None else params.capacity_eval
        if factor is None:
            return None
        pairs = tokens * (1 if isinstance(self.gate, ExpertChoiceGate) else self.top_k)
        return capacity_of(pairs, self.count, factor, params.round_to)

    @torch.no_grad()
    def _stats(self, choice: Choice, where: Plan) -> dict[str, Tensor]:
        found = load_stats(choice, self.count)
        dropped = where.kept.logical_not().float().mean() if where.kept is not None else found["entropy"].new_zeros(())
        return {**found, "dropped": dropped}

    def idle_parameters(self) -> int:
        """Parameters of the experts that a token does not choose."""
        return sum(p.numel() for p in self.experts.parameters()) * (self.count - self.top_k) // self.count

    def report(self, choice: Choice, where: Plan, tokens: int, ctx: Pass) -> None:
        """Put loss and statistics into the pass, under the leaf's position.

        Where the leaf's activations are wanted, also each token's ``experts`` and whether they ``kept`` it (B, N, K),
        and its ``probs`` (B, N, E).
        """
        found = self._stats(choice, where)
        if ctx.leaf in ctx.wanted:
            found |= {"experts": choice.indices, "probs": choice.probs, "kept": _kept(choice, where)}
            found |= {name: found[name].unflatten(0, (-1, tokens)) for name in ("experts", "probs", "kept")}
        ctx.stats |= {f"{ctx.leaf}.{name}": value for name, value in found.items()}
        loss = self.gate.loss(choice, self.group(tokens, len(choice.logits))) if self.training else None
        if loss is not None:
            ctx.losses[f"{ctx.leaf}.router"] = loss


def _kept(choice: Choice, where: Plan) -> Tensor:
    """Whether each pair found a place; under expert choice the pairs are the experts' own, so all did."""
    return where.kept if where.kept is not None else torch.ones_like(choice.indices, dtype=torch.bool)


@torch.no_grad()
def load_stats(choice: Choice, experts: int) -> dict[str, Tensor]:
    """The share of pairs of each expert, (E,), and the mean entropy of a token's probabilities (nats)."""
    everyone = torch.arange(experts, device=choice.indices.device)
    share = (choice.indices[..., None] == everyone).float().mean((0, 1))
    return {"load": share, "entropy": balance.mean_entropy(choice.probs)}


def capacity_of(pairs: int, experts: int, factor: float, round_to: int = 1) -> int:
    """An expert's places: its even share of the pairs times the factor, rounded up, then up to a multiple (V-MoE)."""
    return round_to * math.ceil(math.ceil(pairs * factor / experts) / round_to)


class MoEBlock(AttentionBlock):
    """A transformer block with experts in the perceptron's place (V-MoE): tokens (B, N, width) to the same.

    ``hidden``: units of each expert; the rest as in :class:`modnet.layers.block.Block` and :class:`MoE`.
    """

    holds: ClassVar[dict[str, tuple[str, str]]] = {"moe": ("experts", "router")}

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        experts: int,
        top_k: int,
        router: dict[str, Any],
        activation: Activation = "gelu",
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        prefix: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.build_attention(width, heads, qkv_bias, norm_eps, drop_path, prefix, grid)
        self.moe = MoE(width, hidden, experts, top_k, router, activation)
        initialise_linears(self)

    @classmethod
    def in_place_of(cls, block: Block, hidden: int, experts: int, top_k: int, router: dict[str, Any]) -> MoEBlock:
        """A fresh block of the same outer shape as a dense one, whose attention and norms are yet to be copied."""
        shape = {k: v for k, v in block.arguments.items() if k != "mlp_ratio"}
        return cls(hidden=hidden, experts=experts, top_k=top_k, router=router, **shape)

    def feed(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.moe(x, ctx)
        return out

    def matrices(self) -> dict[str, int]:
        """The fused projection is three matrices, an expert's layer one each; the router is left to AdamW."""
        experts = self.moe.count
        stacks = {"moe.experts.fc1.weight": experts, "moe.experts.fc2.weight": experts}
        return {"attn.qkv.weight": 3, "attn.proj.weight": 1, **stacks}
