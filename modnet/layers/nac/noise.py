"""Noise on the codes of a circuit's modules."""

from __future__ import annotations

import torch
from torch import Tensor

from modnet.randomness import Key


def noisy(codes: Tensor, alpha: float, key: Key | None) -> Tensor:
    """Codes (U, C) plus noise uniform in ±alpha·|c|, one draw for the whole batch; the noise takes no gradient."""
    if key is None or alpha == 0:
        return codes
    uniform = key.uniform(torch.arange(len(codes), device=codes.device), codes.shape[-1])
    return codes + (alpha * codes.abs() * (2 * uniform - 1)).detach()
