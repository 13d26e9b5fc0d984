"""Casts that are done once instead of in every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def cast_frozen(objective: nn.Module, dtype: torch.dtype, but: Iterable[nn.Module] = ()) -> int:
    """Give frozen linear layers weights in the dtype that autocast would cast them to at every use; how many.

    Autocast remembers the casts of weights that learn, and only those, so that a frozen network is cast anew in every
    pass. The layers must be twins that are used under autocast alone: they own their parameters (not the storage).
    ``but``: networks that are also used, and stored, as they are, such as one whose head alone learns.
    """
    found, kept = 0, {part for network in but for part in network.modules()}
    for part in objective.modules():
        if part in kept:
            continue
        if type(part) is nn.Linear and not part.weight.requires_grad and part.weight.dtype == torch.float32:
            part.weight = nn.Parameter(part.weight.to(dtype), requires_grad=False)
            if part.bias is not None:
                part.bias = nn.Parameter(part.bias.to(dtype), requires_grad=False)
            found += 1
    return found
