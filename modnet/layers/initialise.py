"""How parameters start."""

from __future__ import annotations

import torch
from torch import nn


def initialise_linear(layer: nn.Linear, std: float = 0.02) -> None:
    """Truncated normal weight (cut at ±2, as timm does) and zero bias (Dosovitskiy et al. 2021)."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def initialise_linears(module: nn.Module) -> None:
    """:func:`initialise_linear` on every Linear inside; norms and convolutions keep torch's defaults."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            initialise_linear(part)


def table(*shape: int) -> nn.Parameter:
    """A learned table that starts truncated normal with a standard deviation of 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))
