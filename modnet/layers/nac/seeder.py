"""First states of a circuit's modules, from their codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOISE_AT_FIRST = -5.0  # log-variance at initialisation


class Seeder(nn.Module):
    """State = μ(LN(c)) + σ(LN(c)) ⊙ ε for codes (U, codes): states (B, U, width).

    ``noise`` ε (B, U, width) is standard normal; without it every sample starts at the mean. Without ``noisy`` the
    layer of σ does not exist. Source: NAC (arXiv 2210.08031), state initialisation.
    """

    def __init__(self, width: int, codes: int, noisy: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(codes)
        self.mean = nn.Linear(codes, width)
        self.log_variance = nn.Linear(codes, width) if noisy else None
        if self.log_variance is not None:
            nn.init.constant_(self.log_variance.bias, NOISE_AT_FIRST)

    def forward(self, codes: Tensor, batch: int, noise: Tensor | None = None) -> Tensor:
        codes = self.norm(codes)
        mean: Tensor = self.mean(codes).expand(batch, -1, -1)
        if self.log_variance is None or noise is None:
            return mean
        return mean + noise * torch.exp(0.5 * self.log_variance(codes))
