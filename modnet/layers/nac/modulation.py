"""Linear layers that a code modulates: what makes many modules of one set of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ScaleNorm = Literal["layer", "l2", "sigmoid", "tanh", "none"]
InputNorm = Literal["none", "layer", "l2"]
Activation = Literal["none", "gelu"]
Modulation = Mapping[str, Any]
"""Keyword arguments of :class:`ModFC` that a whole network shares."""


def _layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _l2(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _as_is(x: Tensor) -> Tensor:
    return x


_NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "layer": _layer,
    "l2": _l2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "none": _as_is,
}


class ModFC(nn.Module):
    """A linear layer whose inputs are scaled by a code: y = W (x ⊙ s) + b with s = [1 +] gain · norm(M c).

    ``x`` (…, U, takes) and ``code`` (U, codes) to (…, U, gives); a code of one row serves every row of ``x``.
    ``norm`` acts on the scale, ``input_norm`` on the scaled input, ``activation`` on the result. Source: NAC
    (arXiv 2210.08031), modulated linear layer.
    """

    def __init__(
        self,
        takes: int,
        gives: int,
        codes: int,
        bias: bool = True,
        *,
        gain: float = 1.0,
        learnable_gain: bool = False,
        add_one: bool = False,
        norm: ScaleNorm = "layer",
        input_norm: InputNorm = "none",
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(gives, takes), a=math.sqrt(5)))
        self.bias = nn.Parameter(torch.zeros(gives)) if bias else None
        self.scale = nn.Linear(codes, takes, bias=False)
        self.gain: Tensor | float = nn.Parameter(torch.tensor(float(gain))) if learnable_gain else gain
        self.add_one, self.norm, self.input_norm, self.activation = add_one, norm, input_norm, activation

    def scales(self, code: Tensor) -> Tensor:
        """The factor of every input feature: codes (U, codes) to (U, takes)."""
        scale = self.gain * _NORMS[self.norm](self.scale(code))
        return 1 + scale if self.add_one else scale

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        y = F.linear(_NORMS[self.input_norm](x * self.scales(code)), self.weight, self.bias)
        return F.gelu(y) if self.activation == "gelu" else y


class PlainFC(nn.Module):
    """A linear layer that ignores its code, in the place of a :class:`ModFC`."""

    def __init__(self, takes: int, gives: int, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(takes, gives, bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y


class WModFC(nn.Module):
    """A linear layer whose weight is modulated and demodulated: rows of W ⊙ (1 + M c + m), each of unit length.

    ``x`` (…, U, takes) and ``code`` (U, codes) to (…, U, gives). Source: NAC (arXiv 2210.08031), the alternative to
    :class:`ModFC`, after the weight demodulation of Karras et al. 2020.
    """

    def __init__(self, takes: int, gives: int, codes: int, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(gives, takes), a=math.sqrt(5)))
        self.bias = nn.Parameter(torch.zeros(gives)) if bias else None
        self.scale = nn.Linear(codes, takes)
        self.eps = eps

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale: Tensor = 1 + self.scale(code)  # (U, takes)
        length = (scale.square() @ self.weight.square().T + self.eps).rsqrt()  # (U, gives): one of every row of W
        y = F.linear(x * scale, self.weight) * length
        return y if self.bias is None else y + self.bias


def matrices_of(leaf: nn.Module) -> dict[str, int]:
    """What a leaf of modulated layers declares for optimizers that act on matrices: every weight, and every scale's."""
    found: dict[str, int] = {}
    for name, part in leaf.named_modules():
        if isinstance(part, ModFC | WModFC):
            found |= {f"{name}.weight": 1, f"{name}.scale.weight": 1}
    return found
