"""Putting modules between stitches, taking stitches out, and folding neighbours into one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise, takewhile

import torch
from torch import Tensor

from modnet.chain import Chain, Module, Port
from modnet.errors import RequestError
from modnet.layers.stitches import Grid, LinearStitch, Stitch, least_squares, stitch_between
from modnet.surgery.bridging import FEATURES, bridge, laid_out_as, shortened, tokens_of
from modnet.surgery.cutting import cut


def is_stitch(leaf: Module) -> bool:
    """Whether a leaf is a stitch."""
    return leaf.role == "stitch"


def stitched(module: Chain, host: Chain, at: int, kind: str = "ln-linear") -> Chain:
    """``module`` between stitches that let it take the place of the host's module ``at``; one chain of one module.

    ``kind``: ``linear``, ``ln-linear`` or ``identity``. The first module has no stitch before it (it has its own stem)
    and the last none after it (its own head). Where the host lays its features out otherwise (another token grid,
    other class tokens, feature maps), bridges of :mod:`modnet.surgery.bridging` stand on the host's side of the
    stitches. The module's parameters are shared, the stitches' are new. Raises RequestError where features have no
    common layout. Source: m2mKD (arXiv 2402.16918).
    """
    place = host[at]
    before, after = [], []
    if place.takes is not None and place.takes.kind in FEATURES:
        before = _before(kind, place.takes, module.takes)
    if place.gives is not None and place.gives.kind in FEATURES:
        after = _after(kind, module.gives, place.gives)
    return Chain([*before, *module.leaves, *after])


def _before(kind: str, host: Port, own: Port | None) -> list[Module]:
    """From the host's features to what the module takes."""
    tokens = tokens_of(_declared(own))
    inside = laid_out_as(host, tokens)
    return [*bridge(host, inside), stitch_between(kind, inside, tokens), *bridge(tokens, _declared(own))]


def _after(kind: str, own: Port | None, host: Port) -> list[Module]:
    """From what the module gives to the host's features."""
    tokens = tokens_of(_declared(own))
    inside = laid_out_as(host, tokens)
    return [*bridge(_declared(own), tokens), stitch_between(kind, tokens, inside), *bridge(inside, host)]


def _declared(port: Port | None) -> Port:
    if port is None:
        raise RequestError("a module whose ports say nothing cannot be stitched: declare what it takes and gives")
    return port


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
    """Whether there are stitches on both sides of every joint of the modules that together are at most one stitch."""
    joints = [(_stitches(reversed(a.leaves))[::-1], _stitches(b.leaves)) for a, b in pairwise(modules)]
    short = [sum(isinstance(leaf, Stitch) for leaf in shortened([*a, *b])) for a, b in joints]
    return bool(joints) and all(a and b for a, b in joints) and all(count <= 1 for count in short)


def _stitches(leaves: Iterable[Module]) -> list[Module]:
    """The stitches that leaves begin with."""
    return list(takewhile(is_stitch, leaves))


def fold_stitches(chain: Chain) -> Chain:
    """The chain with neighbouring linear stitches folded into one; the cut is kept.

    Other leaves are shared, folded stitches are new. W = W₂W₁, b = W₂b₁ + b₂ in float64. Identity stitches are left
    out. The function stays the same, but for resampling to another grid and straight back, which is left out: see
    :func:`modnet.surgery.bridging.shortened`.
    """
    leaves: list[Module] = []
    for stitches, group in groupby(chain.leaves, is_stitch):
        found = list(group)
        leaves += shortened(found) if stitches else found
    joined = Chain(leaves)
    return cut(joined, chain.depths) if chain and all(chain.depths) else joined
