"""How input modules read tokens: every module has keys and values of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modnet.layers.nac.ffn import ModFFN, layer_scale, scaled
from modnet.layers.nac.modulation import ModFC, Modulation


class ReadInAttention(nn.Module):
    """States (B, U, width) attend to tokens (B, V, tokens) by keys and values that the *receiver's* code modulates.

    Computed without a key and a value for every pair: as the modulated layers are linear, the key's weight and scale
    act on the query instead, and the value's on the mixed tokens. score = (s_k ⊙ W_kᵀ q)·t / √h (a bias of the keys
    shifts a whole row, which the softmax ignores) and value = W_v (s_v ⊙ Σ a t) + b. Exact up to rounding.
    Source: NAC (arXiv 2210.08031), read-in.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        codes: int,
        heads: int,
        head_width: int,
        *,
        qkv_bias: bool = False,
        residual: bool = True,
        scale: float | None = 1.0,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        inner, options = heads * head_width, dict(modulation or {})
        if options.get("input_norm", "none") != "none" or options.get("activation", "none") != "none":
            raise ValueError("the read-in's modulated layers must be linear: no input_norm, no activation")
        self.heads, self.residual = heads, residual
        self.sender_norm, self.receiver_norm = nn.LayerNorm(tokens), nn.LayerNorm(width)
        self.query = ModFC(width, inner, codes, qkv_bias, **options)
        self.key = ModFC(tokens, inner, codes, qkv_bias, **options)
        self.value = ModFC(tokens, inner, codes, qkv_bias, **options)
        self.exit = ModFC(inner, width, codes, **options)
        self.gamma = layer_scale(width, scale)

    def weights(self, states: Tensor, codes: Tensor, tokens: Tensor) -> Tensor:
        """Attention weights (B, H, U, V) over *normed* tokens."""
        query = self.query(self.receiver_norm(states), codes).unflatten(-1, (self.heads, -1))
        back = self.key.weight.unflatten(0, (self.heads, -1))  # (H, h, E)
        asked = torch.einsum("buhd,hde->bhue", query, back) * self.key.scales(codes)
        scores: Tensor = asked @ tokens[:, None].transpose(-1, -2) * query.shape[-1] ** -0.5
        return scores.softmax(-1)

    def forward(self, states: Tensor, codes: Tensor, tokens: Tensor) -> Tensor:
        """States (B, U, width) after reading tokens (B, V, tokens), by codes (U, codes)."""
        tokens = self.sender_norm(tokens)
        mixed = self.weights(states, codes, tokens).to(tokens.dtype) @ tokens[:, None]  # (B, H, U, E)
        weight = self.value.weight.unflatten(0, (self.heads, -1))
        value = torch.einsum("bhue,hde->buhd", mixed * self.value.scales(codes), weight).flatten(2)
        if self.value.bias is not None:
            value = value + self.value.bias
        branch = scaled(self.exit(value, codes), self.gamma)
        return states + branch if self.residual else branch


class ProjectionReadIn(nn.Module):
    """As many modules as tokens, each taking its own: tokens (B, U, tokens) and codes (U, codes) to states."""

    def __init__(
        self,
        tokens: int,
        width: int,
        codes: int,
        capacity: float,
        geglu: bool = True,
        scale: float | None = 0.1,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.projection = ModFC(tokens, width, codes, **(modulation or {}))
        self.ffn = ModFFN(width, codes, capacity, geglu, scale, modulation)

    def forward(self, codes: Tensor, tokens: Tensor) -> Tensor:
        states: Tensor = self.ffn(self.projection(tokens, codes), codes)
        return states
