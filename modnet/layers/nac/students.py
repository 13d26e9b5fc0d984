"""What learns in the place of a circuit's modules among the tokens of a meta network (m2mKD, arXiv 2402.16918).

Students keep the attention and the feed-forward network of their module under the same names. Kernel, signatures,
seeder and noise are left out; a fixed random code, and for the ends a fixed random state, stand for the latents. Both
are buffers, so that they are stored; one state serves every sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modnet.chain import Module, Pass, Port
from modnet.layers.drop_path import survival
from modnet.layers.nac.attention import LatentAttention
from modnet.layers.nac.ffn import ModFFN
from modnet.layers.nac.modulation import Modulation, matrices_of
from modnet.layers.nac.read_in import ReadInAttention


class Student(Module):
    """A module with one fixed code (1, codes)."""

    code: Tensor
    state: Tensor

    def fix(self, codes: int, width: int | None = None) -> None:
        """Draw the code, and a state (1, 1, width) if there is a width."""
        self.register_buffer("code", torch.randn(1, codes))
        if width is not None:
            self.register_buffer("state", torch.randn(1, 1, width))

    def matrices(self) -> dict[str, int]:
        """Every modulated layer's weight and scale."""
        return matrices_of(self)


class ReadInStudent(Student):
    """One module reads tokens (B, N, tokens): one token (B, 1, width)."""

    def __init__(
        self,
        tokens: int,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        *,
        geglu: bool = True,
        qkv_bias: bool = False,
        residual: bool = True,
        scale: float | None = 0.1,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes, self.gives = Port.of("tokens", width=tokens), Port.of("tokens", width=width)
        self.attention = ReadInAttention(
            tokens, width, codes, heads, head_width, qkv_bias=qkv_bias, residual=residual, modulation=modulation
        )
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)
        self.fix(codes, width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        states = self.state.expand(len(x), -1, -1)
        out: Tensor = self.ffn(self.attention(states, self.code, x), self.code)
        return out


class PropagatorStudent(Student):
    """All tokens (B, N, width) hear one another, under one code."""

    even_drop_path = True

    def __init__(
        self,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        *,
        geglu: bool = True,
        qkv_bias: bool = False,
        scale: float | None = 0.1,
        drop_path: float = 0.0,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes = self.gives = Port.of("tokens", width=width)
        self.drop_path = drop_path
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "share_norm": True, "scale": scale, "modulation": modulation}
        self.attention = LatentAttention(width, codes, heads, head_width, **options)
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)
        self.fix(codes)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        kept = survival(self, self.drop_path, x, ctx, branches=2)
        first, second = (None, None) if kept is None else (kept[0], kept[1])
        x = self.attention(x, self.code, x, self.code, survival=first)
        out: Tensor = self.ffn(x, self.code, second)
        return out


class ReadOutStudent(Student):
    """One module hears tokens (B, N, width): its state (B, 1, width)."""

    def __init__(
        self,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        capacity: float,
        *,
        geglu: bool = True,
        qkv_bias: bool = False,
        residual: bool = False,
        scale: float | None = 0.1,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.takes, self.gives = Port.of("tokens", width=width), Port.of("state", width=width, slots=1)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "residual": residual, "scale": scale, "modulation": modulation}
        self.attention = LatentAttention(width, codes, heads, head_width, **options)
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)
        self.fix(codes, width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        states = self.attention(self.state.expand(len(x), -1, -1), self.code, x, self.code)
        out: Tensor = self.ffn(states, self.code)
        return out
