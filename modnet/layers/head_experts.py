"""Attention heads as experts: each token chooses the heads whose queries and outputs it takes (MoH, MoA)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Pass
from modnet.layers.attention import Attention, attend
from modnet.layers.dispatch import combine, dispatch, plan
from modnet.layers.routers import Choice, drawn, gate_of, load_stats
from modnet.layers.stacked import StackedLinear


class HeadExperts(nn.Module):
    """K of E groups of heads for each token: tokens (B, N, width) to the same, by multi-head self-attention.

    An expert is ``each`` heads of ``size`` channels with projections of their own. Every token has keys and values in
    all heads; its queries and outputs are computed in those that it chooses, and summed by the router's weights. The
    output's bias belongs to no head. Always dropless. With all heads chosen at weight 1 it is
    :class:`modnet.layers.attention.Attention`. Raises RequestError as :func:`~modnet.layers.routers.gate_of` does.
    Source: MoH (arXiv 2410.11842); MoA (arXiv 2210.05144), whose heads share keys and values.
    """

    def __init__(
        self,
        width: int,
        size: int,
        each: int,
        experts: int,
        top_k: int,
        router: Mapping[str, Any],
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.params, self.gate = gate_of(router, width, experts, top_k)
        self.count, self.top_k, self.size = experts, top_k, size
        self.query, self.key, self.value = (StackedLinear(experts, width, each * size, qkv_bias) for _ in range(3))
        self.out = StackedLinear(experts, each * size, width, bias=False)
        self.out_bias = nn.Parameter(torch.zeros(width))
        self.settle()

    def settle(self) -> None:
        """Let the router begin anew with the heads as they are."""
        self.gate.settle(self.query.weight)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        """Route, attend in all heads at once, and take from each token's heads what they give."""
        flat = x.flatten(0, 1)
        keys = self.query.weight if self.gate.by_keys else None
        if keys is not None:
            self.gate.follow(keys, ctx.key)
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            choice = self.gate(flat, drawn(self.gate, x, self.count, ctx, "heads"), keys)
        where = plan(choice.indices, self.count)
        assert where.pairs is not None
        rows = where.tokens * self.count + choice.indices.flatten()[where.pairs]  # of all tokens' heads, the chosen
        asked: Tensor = self.query(dispatch(flat, where), where.ends)
        queries = asked.new_zeros(len(flat) * self.count, asked.shape[1]).index_copy(0, rows, asked)
        mixed = self.attend(queries, self.everywhere(self.key, flat), self.everywhere(self.value, flat), len(x))
        given: Tensor = self.out(mixed.index_select(0, rows), where.ends)
        self.report(choice, x.shape[1], ctx)
        return (combine(given, choice.weights, where, len(flat)) + self.out_bias.to(given.dtype)).view(x.shape)

    def everywhere(self, layer: StackedLinear, x: Tensor) -> Tensor:
        """A projection of tokens (T, width) in all heads: (T · E, each · size)."""
        bias: Tensor | None = getattr(layer, "bias", None)
        made = F.linear(x, layer.weight.flatten(0, 1), None if bias is None else bias.flatten())
        return made.view(-1, layer.weight.shape[1])

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, batch: int) -> Tensor:
        """Attention of a batch in all heads: three of (T · E, each · size) to the same."""
        q, k, v = (
            part.view(batch, -1, self.count * part.shape[1] // self.size, self.size).transpose(1, 2)
            for part in (queries, keys.to(queries.dtype), values.to(queries.dtype))
        )
        return attend(q, k, v).transpose(1, 2).reshape(queries.shape)

    def report(self, choice: Choice, tokens: int, ctx: Pass) -> None:
        """Put loss and statistics into the pass, under the leaf's position and ``attention``.

        Where the leaf's activations are wanted, also each token's ``experts`` and ``kept`` (B, N, K), all true, and
        ``probs`` (B, N, E).
        """
        found = load_stats(choice, self.count)
        if ctx.leaf in ctx.wanted:
            kept = torch.ones_like(choice.indices, dtype=torch.bool)
            wanted = {"experts": choice.indices, "probs": choice.probs, "kept": kept}
            found |= {name: value.unflatten(0, (-1, tokens)) for name, value in wanted.items()}
        ctx.stats |= {f"{ctx.leaf}.attention.{name}": value for name, value in found.items()}
        loss = self.gate.loss(choice) if self.training else None
        if loss is not None:
            ctx.losses[f"{ctx.leaf}.attention.router"] = loss

    def idle_parameters(self) -> int:
        """Parameters of queries and outputs of the heads that a token does not choose."""
        stacks = sum(p.numel() for layer in (self.query, self.out) for p in layer.parameters())
        return stacks * (self.count - self.top_k) // self.count

    def matrices(self) -> dict[str, int]:
        """Every expert's projection is a matrix; the router is left to AdamW."""
        return {f"{name}.weight": self.count for name in ("query", "key", "value", "out")}

    @torch.no_grad()
    def divide(self, attention: Attention) -> None:
        """Take the heads of a dense attention, in their order."""
        bias: Tensor | None = getattr(attention.qkv, "bias", None)
        for i, layer in enumerate((self.query, self.key, self.value)):
            layer.weight.copy_(attention.qkv.weight.unflatten(0, (3, self.count, -1))[i])
            if bias is not None:
                layer.bias.copy_(bias.unflatten(0, (3, self.count, -1))[i])
        self.out.weight.copy_(attention.proj.weight.unflatten(1, (self.count, -1)).movedim(1, 0))
        self.out_bias.copy_(attention.proj.bias)
        self.settle()

    @torch.no_grad()
    def join(self, attention: Attention) -> None:
        """Give all heads to a dense attention: what this is where every weight is 1."""
        layers = (self.query, self.key, self.value)
        attention.qkv.weight.copy_(torch.cat([layer.weight.flatten(0, 1) for layer in layers]))
        bias: Tensor | None = getattr(attention.qkv, "bias", None)
        if bias is not None:
            bias.copy_(torch.cat([layer.bias.flatten() for layer in layers]))
        attention.proj.weight.copy_(self.out.weight.movedim(0, 1).flatten(1))
        attention.proj.bias.copy_(self.out_bias)


def attention_of(
    width: int,
    heads: int,
    qkv_bias: bool,
    experts: int | None = None,
    top_k: int | None = None,
    router: Mapping[str, Any] | None = None,
    each: int = 1,
) -> Attention | HeadExperts:
    """Dense attention; or experts of ``each`` heads, as wide as those of the dense one, where their number is given."""
    if experts is None or top_k is None or router is None:
        return Attention(width, heads, qkv_bias)
    return HeadExperts(width, width // heads, each, experts, top_k, router, qkv_bias)
