"""``torch.compile`` for objectives whose random draws are keyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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


_eager_methods: dict[tuple[type, str], Callable[..., Any]] = {}  # as they were before anything was compiled


def compiled(objective: nn.Module) -> nn.Module:
    """The objective compiled, keyed draws left outside the graphs; parameters and train mode are shared."""
    for owner, name in _EAGER:
        method = getattr(owner, name)
        if (owner, name) not in _eager_methods:
            _eager_methods[owner, name] = method
            setattr(owner, name, torch.compiler.disable(method))
    return cast(nn.Module, torch.compile(objective))


def forget_compiled() -> None:
    """Drop everything that was compiled, and let draws be what they were."""
    torch._dynamo.reset()
    while _eager_methods:
        (owner, name), method = _eager_methods.popitem()
        setattr(owner, name, method)
