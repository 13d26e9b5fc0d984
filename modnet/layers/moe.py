"""The sparse mixture of experts, and the transformer block that holds one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Pass
from modnet.layers.block import AttentionBlock, Block
from modnet.layers.dispatch import Plan, combine, dispatch, expert_choice_plan, plan
from modnet.layers.exchange import PerExpert
from modnet.layers.grouped import grouped_linear, grouped_mm_serves
from modnet.layers.grouped_mlp import Activation, grouped_mlp
from modnet.layers.initialise import initialise_linears
from modnet.layers.routers import Choice, ExpertChoiceGate, drawn, gate_of, load_stats
from modnet.layers.stacked import StackedLinear


class Experts(PerExpert):
    """Perceptrons side by side: Linear, GELU, Linear on the rows of each expert, (M, width) to (M, width).

    With ``swiglu`` the first layer passes through SiLU and gates a second one, ``up`` (Shazeer 2020).
    """

    def __init__(
        self, width: int, hidden: int, experts: int, activation: Activation = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = StackedLinear(experts, width, hidden, bias)
        self.fc2 = StackedLinear(experts, hidden, width, bias)
        self.up = StackedLinear(experts, width, hidden, bias) if activation == "swiglu" else None

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        layers = [self.fc1, self.fc2] if self.up is None else [self.fc1, self.up, self.fc2]
        parts = [layer.parts(x) for layer in layers]
        x = x.to(parts[0][0].dtype)
        if grouped_mm_serves(x, parts[0][0].shape[1]):  # one kernel for all experts
            return layer_by_layer(x, parts, ends, self.activation)
        biases = [bias for _, bias in parts if bias is not None]
        return grouped_mlp(x, [weight for weight, _ in parts], biases, ends, self.activation)


def layer_by_layer(
    x: Tensor, parts: Sequence[tuple[Tensor, Tensor | None]], ends: Tensor, activation: Activation
) -> Tensor:
    """As :func:`modnet.layers.grouped_mlp.grouped_mlp`, an operator a layer, each of a weight and a bias or None."""
    first: Tensor = grouped_linear(x, *parts[0], ends)
    if activation == "swiglu":
        hidden = F.silu(first) * grouped_linear(x, *parts[1], ends)
    else:
        hidden = F.gelu(first, approximate="tanh" if activation == "gelu-tanh" else "none")
    out: Tensor = grouped_linear(hidden, *parts[-1], ends)
    return out


class MoE(nn.Module):
    """A router and its experts: tokens (B, N, width) to the same.

    ``router``: parameters of a registered router as plain values. Raises RequestError for a router that could not
    learn, or more choices than experts. Losses go to ``ctx.losses`` while training, the share of pairs of each expert
    (E,), the mean entropy (nats) and the dropped share of pairs (expert choice: of tokens) to ``ctx.stats``.
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
        self.params, self.gate = gate_of(router, width, experts, top_k)
        self.count, self.top_k = experts, top_k
        self.experts = Experts(width, hidden, experts, activation, bias)
        self.settle()

    def settle(self) -> None:
        """Let the router begin anew with the experts as they are."""
        self.gate.settle(self.experts.fc1.weight)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Route, dispatch, compute, combine; a dropped token gives zeros."""
        flat = x.flatten(0, 1)
        exact = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
        keys = self.experts.fc1.weight if self.gate.by_keys else None
        if keys is not None:
            self.gate.follow(keys, ctx.key)
        with exact:
            choice = self.gate(flat, self.noise(x, ctx), keys)
        out, where = self.mix(flat, choice, x.shape[1])
        self.report(choice, where, x.shape[1], ctx)
        return out.view(x.shape)

    def noise(self, x: Tensor, ctx: Pass) -> Tensor | None:
        """Standard normal noise (B·N, E), drawn per sample; None where none is wanted."""
        return drawn(self.gate, x, self.count, ctx)

    def mix(self, x: Tensor, choice: Choice, tokens: int) -> tuple[Tensor, Plan]:
        """The experts' weighted sum for tokens (T, width) of images of so many ``tokens``, and the plan followed."""
        group = self.group(tokens, len(x))
        capacity = self.capacity(group or len(x))
        if isinstance(self.gate, ExpertChoiceGate):
            taken, weights = self.gate.taken(choice, len(x) if capacity is None else capacity)
            where, weights = expert_choice_plan(taken), weights.flatten()
        else:
            weights = choice.weights
            scores = choice.noisy.softmax(-1)[..., : self.count].amax(-1)
            where = plan(choice.indices, self.count, capacity, self.params.order, scores, group)
        given = self.experts(dispatch(x, where), where.ends)
        return combine(given, weights, where, len(x)), where

    def group(self, tokens: int, total: int) -> int | None:
        """Tokens that share places: those of ``group`` images, or all where the batch does not divide."""
        size = (self.params.group or 0) * tokens
        return size if size and total % size == 0 and not isinstance(self.gate, ExpertChoiceGate) else None

    def capacity(self, tokens: int) -> int | None:
        """Places of an expert for a group of tokens, by the router's rule; None: no limit."""
        params = self.params
        factor = params.capacity if self.training or params.capacity_eval is None else params.capacity_eval
        if factor is None:
            return None
        choices = 1 if isinstance(self.gate, ExpertChoiceGate) else self.top_k
        if params.capacity_rule == "tutel":
            return tutel_capacity(tokens, choices, self.count, factor, params.round_to)
        return capacity_of(tokens * choices, self.count, factor, params.round_to)

    @torch.no_grad()
    def _stats(self, choice: Choice, where: Plan) -> dict[str, Tensor]:
        found = load_stats(choice, self.count)
        if where.rows is None:  # every expert took as many tokens; a token is dropped if none took it
            tokens = len(choice.logits)
            taken = torch.zeros(tokens, device=where.tokens.device).index_fill_(0, where.tokens, 1.0)
            return found | {"load": torch.full_like(found["load"], 1 / self.count), "dropped": 1 - taken.mean()}
        dropped = where.kept.logical_not().float().mean() if where.kept is not None else found["entropy"].new_zeros(())
        return {**found, "dropped": dropped}

    def idle_parameters(self) -> int:
        """Parameters of the experts that a token does not choose, or that do not choose it, on average."""
        chosen: float = self.top_k
        if isinstance(self.gate, ExpertChoiceGate):
            chosen = min(self.count, self.params.capacity_eval or self.params.capacity or self.count)
        return int(sum(p.numel() for p in self.experts.parameters()) * (self.count - chosen) / self.count)

    def report(self, choice: Choice, where: Plan, tokens: int, ctx: Pass) -> None:
        """Put loss and statistics into the pass, under the leaf's position.

        Where the leaf's activations are wanted, also each token's ``experts`` and whether they ``kept`` it (B, N, K),
        and its ``probs`` (B, N, E).
        """
        found = self._stats(choice, where)
        if ctx.leaf in ctx.wanted:
            found |= {"experts": choice.indices, "probs": choice.probs, "kept": _kept(choice, where, self.count)}
            found |= {name: found[name].unflatten(0, (-1, tokens)) for name in ("experts", "probs", "kept")}
        ctx.stats |= {f"{ctx.leaf}.{name}": value for name, value in found.items()}
        loss = self.gate.loss(choice, self.group(tokens, len(choice.logits))) if self.training else None
        if loss is not None:
            ctx.losses[f"{ctx.leaf}.router"] = loss


def _kept(choice: Choice, where: Plan, experts: int) -> Tensor:
    """Whether each pair found a place (T, K); under expert choice, whether the expert took the token."""
    if where.rows is None:
        taken = torch.zeros_like(choice.logits, dtype=torch.bool)
        each = len(where.tokens) // experts
        taken[where.tokens, torch.arange(experts, device=taken.device).repeat_interleave(each)] = True
        return taken.gather(1, choice.indices)
    return where.kept if where.kept is not None else torch.ones_like(choice.indices, dtype=torch.bool)


def capacity_of(pairs: int, experts: int, factor: float, round_to: int = 1) -> int:
    """An expert's places: its even share of the pairs times the factor, rounded up, then up to a multiple (V-MoE)."""
    return _upwards(math.ceil(pairs * factor / experts), round_to)


def tutel_capacity(tokens: int, choices: int, experts: int, factor: float, round_to: int = 1) -> int:
    """An expert's places as tutel, and so EMoE, counts them: K·floor(factor·ceil(T / E)), then up to a multiple."""
    return _upwards(choices * math.floor(factor * math.ceil(tokens / experts)), round_to)


def _upwards(places: int, round_to: int) -> int:
    return round_to * math.ceil(places / round_to)


class MoEBlock(AttentionBlock):
    """A transformer block with experts in the perceptron's place (V-MoE): tokens (B, N, width) to the same.

    ``hidden``: units of each expert; the rest as in :class:`modnet.layers.block.Block` and :class:`MoE`.
    """

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
        attention_experts: int | None = None,
        attention_top_k: int | None = None,
        attention_router: dict[str, Any] | None = None,
        attention_heads: int = 1,
    ) -> None:
        super().__init__()
        routed = (attention_experts, attention_top_k, attention_router, attention_heads)
        self.build_attention(width, heads, qkv_bias, norm_eps, drop_path, prefix, grid, *routed)
        self.moe = MoE(width, hidden, experts, top_k, router, activation)
        initialise_linears(self)

    @property
    def holds(self) -> dict[str, tuple[str, str]]:
        """Its experts, and those of attention if its heads are experts."""
        return super().holds | {"moe": ("experts", "router")}

    @classmethod
    def in_place_of(cls, block: Block, hidden: int, experts: int, top_k: int, router: dict[str, Any]) -> MoEBlock:
        """A fresh block of the same outer shape as a dense one, whose attention and norms are yet to be copied."""
        shape = {k: v for k, v in block.arguments.items() if k != "mlp_ratio"}
        return cls(hidden=hidden, experts=experts, top_k=top_k, router=router, **shape)

    def feed(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.moe(x, ctx)
        return out

    def matrices(self) -> dict[str, int]:
        """Those of attention, and an expert's layers, one each; the router is left to AdamW."""
        experts = self.moe.count
        layers = ("fc1", "fc2") if self.moe.experts.up is None else ("fc1", "up", "fc2")
        return super().matrices() | {f"moe.experts.{layer}.weight": experts for layer in layers}
