"""Linear layers of many experts, stacked."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modnet.layers.dispatch import grouped_linear


class StackedLinear(nn.Module):
    """A linear layer for each expert: weight (E, out, in), bias (E, out); each starts as torch's Linear does."""

    bias: Tensor  # None where there is none, as in torch's Linear

    def __init__(self, experts: int, given: int, out: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(given)
        self.weight = nn.Parameter(torch.empty(experts, out, given).uniform_(-bound, bound))
        self.register_parameter("bias", nn.Parameter(torch.zeros(experts, out)) if bias else None)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows (M, in), sorted by expert up to ``ends`` (E,), to (M, out)."""
        bias: Tensor | None = getattr(self, "bias", None)
        parts: tuple[Tensor, Tensor, Tensor | None]
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # which does not know our operator
            dtype = torch.get_autocast_dtype(x.device.type)
            parts = (x.to(dtype), self.weight.to(dtype), None if bias is None else bias.to(dtype))
        else:
            weight = self.weight
            parts = (x.to(weight.dtype), weight, bias)
        out: Tensor = grouped_linear(*parts, ends)
        return out
