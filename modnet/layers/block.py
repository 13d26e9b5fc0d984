"""The transformer block: attention and a perceptron, each behind a norm and around a residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.layers.drop_path import survival
from modnet.layers.head_experts import HeadExperts, attention_of
from modnet.layers.initialise import initialise_linears
from modnet.layers.mlp import MLP


class AttentionBlock(Module):
    """Attention, then what a subclass feeds tokens through, each behind a norm and around a residual."""

    role = "block"

    def build_attention(
        self,
        width: int,
        heads: int,
        qkv_bias: bool,
        norm_eps: float,
        drop_path: float,
        prefix: int | None,
        grid: tuple[int, int] | None,
        *routed: Any,
    ) -> None:
        """Declare the ports and make all but the second branch; a subclass calls it in its constructor.

        ``routed``: of heads that are experts the experts' number (else None), how many of them a token chooses, the
        router, and the heads of each.
        """
        self.takes = self.gives = Port.of("tokens", width=width, prefix=prefix, grid=grid)
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = attention_of(width, heads, qkv_bias, *routed)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)

    @property
    def holds(self) -> dict[str, tuple[str, str]]:
        """Mixtures of experts in the block: the arguments that tell how many there are, and by which router."""
        routed = isinstance(self.attn, HeadExperts)
        return {"attn": ("attention_experts", "attention_router")} if routed else {}

    def attend(self, x: Tensor, ctx: Pass, first: int | None = None) -> Tensor:
        """The first branch: normed tokens (B, N, width) to the same, or to the ``first`` of them."""
        out: Tensor = self.attn(x, ctx) if isinstance(self.attn, HeadExperts) else self.attn(x, first)
        return out

    def feed(self, x: Tensor, ctx: Pass) -> Tensor:
        """The second branch: normed tokens (B, N, width) to the same."""
        raise NotImplementedError

    def forward(self, x: Tensor, ctx: Pass, first: int | None = None) -> Tensor:
        """Tokens (B, N, width) to the same, or with ``first`` to so many of them; a sample may skip a branch."""
        factor = survival(self, self.drop_path, x, ctx, branches=2)
        mixed = self.attend(self.norm1(x), ctx, first)
        x = x if first is None else x[:, :first]
        if factor is None:
            x = x + mixed
            x = x + self.feed(self.norm2(x), ctx)
        else:
            x = x + factor[0] * mixed
            x = x + factor[1] * self.feed(self.norm2(x), ctx)
        return x

    def matrices(self) -> dict[str, int]:
        """Of attention: a fused projection is three matrices, each head that is an expert one in each projection."""
        if isinstance(self.attn, HeadExperts):
            return {f"attn.{name}": count for name, count in self.attn.matrices().items()}
        return {"attn.qkv.weight": 3, "attn.proj.weight": 1}


class Block(AttentionBlock):
    """Pre-norm transformer block (Dosovitskiy et al. 2021): tokens (B, N, width) to the same.

    ``drop_path`` is the probability that a sample skips a residual branch while training. ``prefix`` (class tokens)
    and ``grid`` (patches down, across) are only declared in the ports; None fits any. ``attention_experts``, ``_top_k``
    and ``_router`` make experts of ``attention_heads`` heads each (:class:`modnet.layers.head_experts.HeadExperts`).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
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
        self.narrows = attention_experts is None  # heads that are experts route all tokens
        self.mlp = MLP(width, int(width * mlp_ratio))
        initialise_linears(self)

    def feed(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.mlp(x)
        return out

    def matrices(self) -> dict[str, int]:
        """Those of attention, and each layer of the perceptron."""
        return super().matrices() | {"mlp.fc1.weight": 1, "mlp.fc2.weight": 1}
