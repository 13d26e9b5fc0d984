"""Putting modules between stitches, taking stitches out, and folding neighbours into one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from modnet.chain import Chain, Module, Port
from modnet.errors import RequestError
from modnet.layers.stitches import Grid, IdentityStitch, LinearStitch, fold, folds, least_squares, stitch_between
from modnet.surgery.cutting import cut


def is_stitch(leaf: Module) -> bool:
    """Whether a leaf is a stitch."""
    return leaf.role == "stitch"


def stitched(module: Chain, host: Chain, at: int, kind: str = "ln-linear") -> Chain:
    """``module`` between stitches that let it take the place of the host's module ``at``; one chain of one module.

    ``kind``: ``linear``, ``ln-linear`` or ``identity``. The first module has no stitch before it (it has its own stem)
    and the last none after it (its own head). The module's parameters are shared, the stitches' are new.
    Raises RequestError where tokens differ in more than their width. Source: m2mKD (arXiv 2402.16918).
    """
    place = host[at]
    before, after = [], []
    if place.takes is not None and place.takes.kind == "tokens":
        before = [_between(kind, place.takes, module.takes)]
    if place.gives is not None and place.gives.kind == "tokens":
        after = [_between(kind, module.gives, place.gives)]
    return Chain([*before, *module.leaves, *after])


def _between(kind: str, takes: Port | None, gives: Port | None) -> Module:
    if takes is None or gives is None:
        raise RequestError("a module whose ports say nothing cannot be stitched: declare what it takes and gives")
    return stitch_between(kind, takes, gives)


@torch.no_grad()
def least_squares_stitch(x: Tensor, y: Tensor, prefix: int | None = None, grid: Grid | None = None) -> LinearStitch:
    """The linear stitch that brings features ``x`` (…, in) closest to ``y`` (…, out) in squared error.

    Rows match; the result has the dtype and device of ``y``. ``prefix`` and ``grid`` are those of its ports. Raises
    ValueError for unequal numbers of rows. Source: SN-Net (Pan et al. 2023), section 3.2.
    """
    weight, bias = least_squares(x, y)
    stitch = LinearStitch(x.shape[-1], y.shape[-1], prefix, grid).to(weight)
    stitch.fc.weight.copy_(weight)
    stitch.fc.bias.copy_(bias)
    return stitch


def without_stitches(chain: Chain) -> Chain:
    """The chain's other leaves, shared, under the same cut; raises PortMismatch if they do not fit."""
    rest = Chain([leaf for leaf in chain.leaves if not is_stitch(leaf)])
    return cut(rest, [depth for depth in chain.depths if depth]) if any(chain.depths) else rest


def foldable(modules: Sequence[Chain]) -> bool:
    """Whether every joint of the modules is a pair of stitches that folds into one."""
    joints = [(a.leaves[-1], b.leaves[0]) for a, b in pairwise(modules)]
    return bool(joints) and all(is_stitch(a) and is_stitch(b) and folds(a, b) for a, b in joints)


def fold_stitches(chain: Chain) -> Chain:
    """The chain with every two neighbouring linear stitches folded into one; the function stays the same.

    Other leaves are shared, folded stitches are new; the cut is kept. W = W₂W₁, b = W₂b₁ + b₂ in float64.
    Identity stitches are left out.
    """
    leaves: list[Module] = []
    for leaf in chain.leaves:
        if leaves and is_stitch(leaf) and is_stitch(leaves[-1]) and folds(leaves[-1], leaf):
            leaves[-1] = fold(leaves[-1], leaf)
        else:
            leaves.append(leaf)
    joined = Chain([leaf for leaf in leaves if not isinstance(leaf, IdentityStitch)])
    return cut(joined, chain.depths) if chain and all(chain.depths) else joined
