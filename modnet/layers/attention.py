"""Multi-head self-attention (Vaswani et al. 2017)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modnet.errors import RequestError


class Attention(nn.Module):
    """Self-attention with one fused projection laid out [q | k | v], each cut into heads.

    Tokens (B, N, width) to (B, N, width). Raises RequestError if the width does not divide by the heads.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise RequestError(
                f"width {width} does not divide into {heads} heads; "
                f"give a number of heads that divides it, such as {_nearest_divisor(width, heads)}"
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        joined: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return joined


def _nearest_divisor(width: int, heads: int) -> int:
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    return min(divisors, key=lambda d: abs(d - heads))
