"""The leaves of a ModuleFormer: bytes to tokens, blocks of experts, and a score for each next byte."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.layers.expert_attention import ExpertAttention, History
from modnet.layers.grouped_mlp import Activation
from modnet.layers.moe import MoE

INITIAL_STD = 0.02


def _line(width: int, length: int | None) -> Port:
    """Tokens in a row."""
    return Port.of("tokens", width=width, prefix=0, grid=None if length is None else (1, length))


class SymbolStem(Module):
    """Ids, int64 (B, length), to tokens (B, length, width): a learned table, no positions."""

    role = "stem"

    def __init__(self, vocab: int, length: int | None, width: int) -> None:
        super().__init__()
        self.takes, self.gives = Port.of("ids", vocab=vocab, length=length), _line(width, length)
        self.table = nn.Embedding(vocab, width)
        nn.init.normal_(self.table.weight, std=INITIAL_STD)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.table(x)
        return out


class ModuleFormerBlock(Module):
    """Experts of attention, then experts of perceptrons, each behind a norm and around a residual (B, T, width).

    ``attention_hidden``, ``heads``: of each attention expert; ``hidden``: units of each perceptron. The routers are
    parameters as plain values, the losses go to the pass. ``bias``: of the perceptrons. Source: arXiv 2306.04640.
    """

    role = "block"
    holds: ClassVar[dict[str, tuple[str, str]]] = {
        "attn": ("attention_experts", "attention_router"),
        "moe": ("experts", "router"),
    }

    def __init__(
        self,
        width: int,
        attention_hidden: int,
        heads: int,
        attention_experts: int,
        attention_top_k: int,
        attention_router: dict[str, Any],
        hidden: int,
        experts: int,
        top_k: int,
        router: dict[str, Any],
        activation: Activation = "gelu-tanh",
        bias: bool = False,
        norm_eps: float = 1e-5,
        length: int | None = None,
    ) -> None:
        super().__init__()
        self.takes = self.gives = _line(width, length)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = ExpertAttention(
            width, attention_hidden, heads, attention_experts, attention_top_k, attention_router
        )
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.moe = MoE(width, hidden, experts, top_k, router, activation, bias)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return self.step(x, ctx)[0]

    def step(self, x: Tensor, ctx: Pass, history: History | None = None) -> tuple[Tensor, History]:
        """Tokens (B, T, width) behind earlier ones whose keys and values are given; beside them all keys and values."""
        normed = self.norm1(x)
        memory = self.attn.memory(normed, history)
        x = x + self.attn(normed, ctx, memory)
        out: Tensor = x + self.moe(self.norm2(x), ctx)
        return out, memory

    def matrices(self) -> dict[str, int]:
        """Every expert's layer is a matrix; routers are left to AdamW."""
        attention, perceptrons = self.attn.count, self.moe.count
        return {
            "attn.query.weight": attention,
            "attn.out.weight": attention,
            "attn.key.weight": 1,
            "attn.value.weight": 1,
            "moe.experts.fc1.weight": perceptrons,
            "moe.experts.fc2.weight": perceptrons,
        }


class SymbolHead(Module):
    """Final norm and a linear map without bias: tokens (B, length, width) to logits (B, length, vocab)."""

    role = "head"

    def __init__(self, width: int, vocab: int, length: int | None = None, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.takes, self.gives = _line(width, length), Port.of("logits", classes=vocab, per="position")
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.head.weight, std=INITIAL_STD)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits
