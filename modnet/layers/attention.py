"""Multi-head self-attention (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.errors import RequestError

LONGEST = 512  # tokens


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

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """With ``first`` only so many tokens, from the first on, look at all the others: (B, first, width)."""
        # Cut along the last axis, so that gradients of the parts are put side by side in one copy.
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = attend(q if first is None else q[:, :, :first], k, v)
        joined: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return joined


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of queries (B, H, M, d), keys and values (B, H, N, d): (B, H, M, d).

    On the CPU in bfloat16 by products and a softmax in float32: several times faster there than torch's fused kernel,
    whose backward pass is slow in that type. Long sequences are left to it all the same, as scores take N² numbers.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > LONGEST:
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)


def _nearest_divisor(width: int, heads: int) -> int:
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    return min(divisors, key=lambda d: abs(d - heads))
