"""Linear layers of many experts, stacked."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modnet.layers.exchange import PerExpert, held
from modnet.layers.grouped import grouped_linear


class StackedLinear(PerExpert):
    """A linear layer for each expert: weight (E, out, in), bias (E, out); each starts as torch's Linear does."""

    bias: Tensor  # None where there is none, as in torch's Linear

    def __init__(self, experts: int, given: int, out: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(given)
        self.weight = nn.Parameter(torch.empty(experts, out, given).uniform_(-bound, bound))
        self.register_parameter("bias", nn.Parameter(torch.zeros(experts, out)) if bias else None)

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows (M, in), sorted by expert up to ``ends`` (E,), to (M, out), in autocast's dtype where it is on."""
        weight, bias = self.parts(x)
        out: Tensor = grouped_linear(x.to(weight.dtype), weight, bias, ends)
        return out

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What this process has of weight and bias, in the dtype in which rows x are to be multiplied."""
        bias: Tensor | None = getattr(self, "bias", None)
        weight, bias = held(self.weight), None if bias is None else held(bias)
        # Autocast does not know our operators.
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return weight.to(dtype), None if bias is None else bias.to(dtype)
        return weight, bias
