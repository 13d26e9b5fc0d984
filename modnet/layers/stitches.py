"""Stitches: small leaves between networks of different widths, their least-squares solution and their folding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from modnet.chain import Module, Pass, Port
from modnet.errors import RequestError
from modnet.layers.initialise import initialise_linear

Grid = tuple[int, int]


class Stitch(Module):
    """Tokens (B, N, takes_width) to (B, N, gives_width); prefix and grid are only declared."""

    role = "stitch"

    def __init__(self, takes_width: int, gives_width: int, prefix: int | None = None, grid: Grid | None = None) -> None:
        super().__init__()
        self.takes = Port.of("tokens", width=takes_width, prefix=prefix, grid=grid)
        self.gives = Port.of("tokens", width=gives_width, prefix=prefix, grid=grid)


class LinearStitch(Stitch):
    """One affine map of every token (SN-Net, Pan et al. 2023)."""

    def __init__(self, takes_width: int, gives_width: int, prefix: int | None = None, grid: Grid | None = None) -> None:
        super().__init__(takes_width, gives_width, prefix, grid)
        self.fc = _linear(takes_width, gives_width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.fc(x)
        return out


class NormLinearStitch(Stitch):
    """LayerNorm (eps 1e-5), then an affine map of every token (m2mKD, Lo et al. 2024)."""

    def __init__(self, takes_width: int, gives_width: int, prefix: int | None = None, grid: Grid | None = None) -> None:
        super().__init__(takes_width, gives_width, prefix, grid)
        self.ln = nn.LayerNorm(takes_width, eps=1e-5)
        self.fc = _linear(takes_width, gives_width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        out: Tensor = self.fc(self.ln(x))
        return out


class IdentityStitch(Stitch):
    """Tokens as they are; raises RequestError if the two widths differ."""

    def __init__(self, takes_width: int, gives_width: int, prefix: int | None = None, grid: Grid | None = None) -> None:
        super().__init__(takes_width, gives_width, prefix, grid)
        if takes_width != gives_width:
            raise RequestError(
                f"stitch: identity needs equal widths, not {takes_width} and {gives_width}; "
                "use stitch: linear or ln-linear"
            )

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return x


def _linear(takes: int, gives: int) -> nn.Linear:
    """A map that keeps the tokens' scale at any width, which 0.02 for every weight would not."""
    layer = nn.Linear(takes, gives)
    initialise_linear(layer, std=takes**-0.5)
    return layer


STITCHES: dict[str, type[Stitch]] = {"linear": LinearStitch, "ln-linear": NormLinearStitch, "identity": IdentityStitch}


def stitch_between(kind: str, takes: Port, gives: Port) -> Module:
    """A stitch of a kind (``linear``, ``ln-linear``, ``identity``) from one tokens port to another.

    Raises RequestError where the ports differ in more than their width.
    """
    for port in (takes, gives):
        if port.kind != "tokens":
            raise RequestError(f"a stitch joins tokens to tokens, not {takes} to {gives}")
    for name in ("prefix", "grid"):
        if None not in (takes[name], gives[name]) and takes[name] != gives[name]:
            raise RequestError(
                f"a stitch changes only the width of tokens, but {takes} and {gives} differ "
                f"in {name}; put a Resample between them (modnet.surgery.stitched does), or build both networks "
                "for the same patch size and class token"
            )
    prefix = gives["prefix"] if takes["prefix"] is None else takes["prefix"]
    grid = gives["grid"] if takes["grid"] is None else takes["grid"]
    return STITCHES[kind](takes["width"], gives["width"], prefix, grid)


def least_squares(x: Tensor, y: Tensor, method: Literal["lstsq", "pinv"] = "lstsq") -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out) of the affine map that brings ``x`` closest to ``y`` in squared error.

    ``x`` (…, in) and ``y`` (…, out) hold matching rows. Solved in float64; both methods agree where ``x`` has full
    column rank (SN-Net, Pan et al. 2023, section 3.2). Raises ValueError for unequal numbers of rows.
    """
    left, right = x.flatten(0, -2).double(), y.flatten(0, -2).double()
    if len(left) != len(right):
        raise ValueError(f"{len(left)} rows cannot be mapped to {len(right)} rows")
    left = torch.cat([left, torch.ones_like(left[:, :1])], dim=1)
    if method == "pinv":
        solution = torch.linalg.pinv(left) @ right
    else:
        driver = "gelsd" if x.device.type == "cpu" else None  # the one that bears deficient rank
        solution = torch.linalg.lstsq(left, right, driver=driver).solution
    return solution[:-1].T.to(y.dtype).contiguous(), solution[-1].to(y.dtype)


def folds(first: nn.Module, second: nn.Module) -> bool:
    """Whether two neighbouring stitches are together one stitch: no norm lies between them."""
    if isinstance(first, IdentityStitch):
        return isinstance(second, Stitch)
    return isinstance(first, Stitch) and isinstance(second, LinearStitch | IdentityStitch)


@torch.no_grad()
def fold(first: Module, second: Module) -> Stitch:
    """One stitch that maps as ``second`` after ``first`` does, exact up to rounding in float64.

    W = W2 W1 and b = W2 b1 + b2; a norm in front stays in front. The result has parameters of its own. Raises
    ValueError where a norm between the two forbids folding.
    """
    if not folds(first, second):
        names = f"{type(first).__name__} and {type(second).__name__}"
        raise ValueError(f"{names} do not fold into one map")
    kept = second if isinstance(first, IdentityStitch) else first
    joined = _like(kept, first.takes, second.gives)
    if not isinstance(joined, LinearStitch | NormLinearStitch):
        return joined
    if isinstance(joined, NormLinearStitch) and isinstance(kept, NormLinearStitch):
        joined.ln.load_state_dict(kept.ln.state_dict())
    weight, bias = _composed(first, second)
    joined.fc.weight.copy_(weight)
    joined.fc.bias.copy_(bias)
    return joined


def _composed(first: nn.Module, second: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of both maps in a row; an identity contributes nothing."""
    maps = [
        (stitch.fc.weight.double(), stitch.fc.bias.double())
        for stitch in (first, second)
        if isinstance(stitch, LinearStitch | NormLinearStitch)
    ]
    if len(maps) == 1:
        return maps[0]
    (weight1, bias1), (weight2, bias2) = maps
    return weight2 @ weight1, weight2 @ bias1 + bias2


def _like(stitch: Module, takes: Port | None, gives: Port | None) -> Stitch:
    """A fresh stitch of the same kind, device and dtype between two ports."""
    if not isinstance(stitch, Stitch) or takes is None or gives is None:
        raise TypeError(f"{type(stitch).__name__} is no stitch between tokens")
    fresh = type(stitch)(takes["width"], gives["width"], takes["prefix"], takes["grid"])
    example = next(stitch.parameters(), None)
    return fresh if example is None else fresh.to(device=example.device, dtype=example.dtype)
