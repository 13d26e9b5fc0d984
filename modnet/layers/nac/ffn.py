"""The feed-forward network of a module, modulated by its code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.layers.nac.modulation import ModFC, Modulation


def layer_scale(width: int, initial: float | None) -> nn.Parameter | None:
    """A learned factor of every feature of a branch (Touvron et al. 2021), or none."""
    return None if initial is None else nn.Parameter(torch.full((width,), float(initial)))


class ModFFN(nn.Module):
    """x + γ ⊙ F2(act(F1(LN(x), c)), c): states (B, U, width) and codes (U, codes) to states.

    With ``geglu`` the act is h1 ⊙ GELU(h2) of the two halves of F1's features (Shazeer 2020), else GELU. ``survival``
    (B, 1, 1) multiplies the branch. Source: NAC (arXiv 2210.08031), modulated FFN.
    """

    def __init__(
        self,
        width: int,
        codes: int,
        capacity: float,
        geglu: bool = True,
        scale: float | None = 0.1,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        hidden, options = round(capacity * width), modulation or {}
        self.geglu = geglu
        self.norm = nn.LayerNorm(width)
        self.fc1 = ModFC(width, hidden * (2 if geglu else 1), codes, **options)
        self.fc2 = ModFC(hidden, width, codes, **options)
        self.gamma = layer_scale(width, scale)

    def forward(self, x: Tensor, code: Tensor, survival: Tensor | None = None) -> Tensor:
        hidden = self.fc1(self.norm(x), code)
        if self.geglu:
            left, right = hidden.chunk(2, dim=-1)
            hidden = left * F.gelu(right)
        else:
            hidden = F.gelu(hidden)
        return x + scaled(self.fc2(hidden, code), self.gamma, survival)


def scaled(branch: Tensor, gamma: Tensor | None, survival: Tensor | None = None) -> Tensor:
    """A residual branch times its layer scale and each sample's survival."""
    if gamma is not None:
        branch = branch * gamma
    return branch if survival is None else branch * survival
