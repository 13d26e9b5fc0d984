"""A mixture of attention experts: each token chooses whose queries and output projections it uses (ModuleFormer)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.layers.dispatch import Plan, combine, dispatch, plan
from modnet.layers.routers import Choice, drawn, gate_of, load_stats
from modnet.layers.stacked import StackedLinear
from modnet.layers.stickbreaking import attend

History = tuple[Tensor, Tensor]


class ExpertAttention(nn.Module):
    """K of E experts for each token: tokens (B, T, width) to the same, by stick-breaking attention.

    An expert has its own query and output projections, ``hidden`` wide in ``heads`` heads; keys and values belong to
    all experts. The router's weight multiplies once, after the output projection. Always dropless. Raises RequestError
    if ``hidden`` does not divide by the heads, and as :func:`~modnet.layers.routers.gate_of` does.
    Source: arXiv 2306.04640.
    """

    def __init__(
        self, width: int, hidden: int, heads: int, experts: int, top_k: int, router: Mapping[str, Any]
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise RequestError(f"attention_hidden {hidden} does not divide into {heads} heads")
        self.params, self.gate = gate_of(router, width, experts, top_k, "attention_top_k")
        self.count, self.top_k, self.heads = experts, top_k, heads
        self.query = StackedLinear(experts, width, hidden, bias=False)
        self.key, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = StackedLinear(experts, hidden, width, bias=False)

    def route(self, x: Tensor, eps: Tensor | None = None) -> tuple[Choice, Plan]:
        """The choice of tokens (T, width) with noise ``eps`` (T, E), and the plan that follows it."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            choice = self.gate(x, eps)
        return choice, plan(choice.indices, self.count)

    def queries(self, x: Tensor, where: Plan) -> Tensor:
        """Each token's K queries: (T, width) to (T, K, heads, hidden / heads)."""
        assert where.rows is not None
        sorted_rows = self.query(dispatch(x, where), where.ends)
        pairs: Tensor = sorted_rows.index_select(0, where.rows.flatten())
        return pairs.view(len(x), self.top_k, self.heads, -1)

    def join(self, mixed: Tensor, weights: Tensor, where: Plan) -> Tensor:
        """Each token's K results (T, K, hidden) through their experts' output projections, summed: (T, width)."""
        assert where.pairs is not None
        sorted_rows = mixed.flatten(0, 1).index_select(0, where.pairs)
        given: Tensor = self.out(sorted_rows, where.ends)
        return combine(given, weights, where, len(mixed))

    def memory(self, x: Tensor, history: History | None = None) -> History:
        """Keys and values (B, T, heads, hidden / heads) of tokens (B, T, width), behind those of earlier tokens."""
        made = tuple(layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value))
        if history is not None:
            made = tuple(torch.cat([old, new], dim=1) for old, new in zip(history, made, strict=True))
        return made[0], made[1]

    def forward(self, x: Tensor, ctx: Pass, memory: History | None = None) -> Tensor:
        """``memory``: keys and values of all tokens so far, these included; None: these tokens' alone."""
        keys, values = self.memory(x) if memory is None else memory
        flat = x.flatten(0, 1)
        choice, where = self.route(flat, drawn(self.gate, x, self.count, ctx, "attention"))
        q = self.queries(flat, where).unflatten(0, x.shape[:2])
        mixed = attend(q.to(keys.dtype), keys, values)
        out = self.join(mixed.flatten(0, 1).flatten(2), choice.weights, where)
        self.report(choice, ctx)
        return out.view(x.shape)

    def report(self, choice: Choice, ctx: Pass) -> None:
        """Put loss and statistics into the pass, under the leaf's position."""
        stats = load_stats(choice, self.count)
        ctx.stats |= {f"{ctx.leaf}.attention.{name}": value for name, value in stats.items()}
        loss = self.gate.loss(choice) if self.training else None
        if loss is not None:
            ctx.losses[f"{ctx.leaf}.attention.router"] = loss

    def idle_parameters(self) -> int:
        """Parameters of the experts that a token does not choose."""
        stacks = self.query.weight.numel() + self.out.weight.numel()
        return stacks * (self.count - self.top_k) // self.count
