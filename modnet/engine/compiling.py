"""``torch.compile`` for objectives whose random draws are keyed."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from modnet.chain import Pass
from modnet.randomness import Key

# A key is another number in every step: traced, it would be a constant, and every step would compile anew.
_EAGER = (
    (Pass, "rng"),
    (Pass, "enter"),
    (Key, "fold"),
    (Key, "bits"),
    (Key, "uniform"),
    (Key, "normal"),
    (Key, "number"),
)


def compiled(objective: nn.Module) -> nn.Module:
    """The objective compiled, keyed draws left outside the graphs; parameters and train mode are shared."""
    for owner, name in _EAGER:
        method = getattr(owner, name)
        if not hasattr(method, "_torchdynamo_disable"):
            setattr(owner, name, torch.compiler.disable(method))
    return cast(nn.Module, torch.compile(objective))
