"""Bridges: leaves without parameters that lay features out as another network wants them, width unchanged.

Tokens and feature maps are turned into each other, token grids are resampled, class tokens dropped or made. A bridge
there and a bridge back around a stitch, as assembly puts them side by side, are shortened by :func:`shortened`.
"""

from __future__ import annotations

from collections.abc import Sequence

from modnet.chain import Module, Port
from modnet.errors import RequestError
from modnet.layers.adapters import MapsToTokens, Resample, TokensToMaps
from modnet.layers.stitches import IdentityStitch, Stitch, fold, folds

FEATURES = ("tokens", "maps")
"""The kinds of ports between the modules of one network that a stitch can stand at."""


def tokens_of(port: Port) -> Port:
    """The tokens that a port's features are, or are made into: of feature maps every cell is one."""
    if port.kind == "maps":
        return Port.of("tokens", width=port["channels"], prefix=0, grid=(port["height"], port["width"]))
    if port.kind != "tokens":
        raise RequestError(f"a stitch joins tokens or feature maps, not {port}; other features have no common layout")
    return port


def width_of(port: Port | None) -> int:
    """The number of features of each token, or of each cell of feature maps; 0 where neither flows."""
    return int(tokens_of(port)["width"]) if port is not None and port.kind in FEATURES else 0


def laid_out_as(port: Port, like: Port) -> Port:
    """Tokens as wide as those of ``port``, with class tokens and grid of ``like``; what that leaves open stays."""
    own, other = tokens_of(port), tokens_of(like)
    dims = {name: own[name] if other[name] is None else other[name] for name in ("prefix", "grid")}
    return Port.of("tokens", width=own["width"], **dims)


def bridge(takes: Port, gives: Port) -> list[Module]:
    """The leaves that lead from ``takes`` to ``gives``, which are equally wide; none where both are laid out alike.

    Dimensions that one side leaves open are taken to be the other's. Raises RequestError for ports that hold no tokens
    or feature maps, or whose grids differ where a number of class tokens is open.
    """
    first, last = tokens_of(takes), tokens_of(gives)
    leaves: list[Module] = []
    if takes.kind == "maps":
        leaves.append(MapsToTokens(first["width"], first["grid"]))
    if not first.fits(last):
        leaves.append(_resample(first, last))
    if gives.kind == "maps":
        leaves.append(TokensToMaps(last["width"], last["grid"]))
    return leaves


def _resample(first: Port, last: Port) -> Resample:
    known = {name: first[name] if last[name] is None else last[name] for name in ("prefix", "grid")}
    own = {name: known[name] if first[name] is None else first[name] for name in known}
    if None in (*known.values(), *own.values()):
        raise RequestError(f"tokens cannot be resampled from {first} to {last}: they must say their prefix and grid")
    return Resample(first["width"], own["prefix"], own["grid"], known["prefix"], known["grid"])


def shortened(leaves: Sequence[Module]) -> list[Module]:
    """Neighbouring stitches and bridges as few leaves as they can be; what is not joined is shared.

    A turn from maps to tokens and back, or the reverse, is left out. Two affine maps become one; a resampling between
    them moves behind, which changes nothing, as it commutes with them. A resampling to another grid and back to the
    first is left out as well: that is **not** the identity (it blurs), but it only served the network that both
    modules learned from, which is gone, and the student's own grid holds more. Class tokens that did not pass to
    the other network are the mean of the grid tokens behind the joint, as the next module was taught. Where a
    LayerNorm lies between two maps, both stay.
    """
    done: list[Module] = []
    for leaf in leaves:
        _push(done, leaf)
    return [leaf for leaf in done if not isinstance(leaf, IdentityStitch)]


def _push(done: list[Module], leaf: Module) -> None:
    """Append a leaf, joined with those before it where that is possible."""
    last = done[-1] if done else None
    before = done[-2] if len(done) > 1 else None
    if last is not None and _undone(last, leaf):
        done.pop()
    elif isinstance(last, Resample) and isinstance(leaf, Resample) and last.grid == leaf.gives_grid:
        done.pop()
        both = Resample(last.width, last.prefix, last.grid, leaf.gives_prefix, None, min(last.kept, leaf.kept))
        if not both.changes_nothing:
            _push(done, both.to(last.down.device))
    elif isinstance(last, Stitch) and folds(last, leaf):
        done.pop()
        _push(done, fold(last, leaf))
    elif isinstance(last, Resample) and isinstance(before, Stitch) and folds(before, leaf):
        del done[-2:]
        joined = fold(before, leaf)
        _push(done, joined)
        _push(done, _for_width(last, width_of(joined.gives)).to(last.down.device))
    else:
        done.append(leaf)


def _undone(first: Module, second: Module) -> bool:
    """Whether two leaves turn features into another layout and straight back."""
    turns = {MapsToTokens: TokensToMaps, TokensToMaps: MapsToTokens}
    return turns.get(type(first)) is type(second) and first.takes == second.gives


def _for_width(leaf: Resample, width: int) -> Resample:
    return Resample(width, leaf.prefix, leaf.grid, leaf.gives_prefix, leaf.gives_grid, leaf.kept)
