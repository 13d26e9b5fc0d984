"""Fitting a trained network to other images or classes: a fresh head, a resized position table."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain, Port, describe, rebuild
from modnet.layers.adapters import InputAdapter
from modnet.randomness import Key
from modnet.recipe.stages import Mismatch

Description = dict[str, Any]
Grid = tuple[int, int]


def adapt(chain: Chain, port: Port, classes: int, rule: Mismatch, key: Key) -> tuple[Chain, list[str]]:
    """A network of the same trained leaves for images of ``port`` and ``classes`` classes, and what was changed.

    The chain itself comes back, with no changes, where it already fits. The position table is resized bicubically
    over its grid (``align_corners`` off; class-token rows kept) or drawn afresh; the head likewise. Of a network that
    begins with an input adapter, only that follows the images.
    """
    description = describe(chain)
    if rule.head == "fresh":
        for head in _heads(description):
            head["classes"] = classes
    if chain.takes is not None and chain.takes != port:
        if isinstance(chain.leaves[0], InputAdapter):  # all behind it stays as it is
            description["leaves"][0] |= {"channels": port["channels"], "size": port["size"], "mean": None, "std": None}
        else:
            _follow(description, chain.takes, port, None)
    if description == describe(chain):
        return chain, []
    with key.fold("adapt").forked():
        adapted = rebuild(description)
    return adapted, _load(adapted, chain, rule)


def _heads(description: Description) -> Iterator[Description]:
    """The last leaf of the chain, or of each chain that it ends in, where it tells classes apart."""
    last = description["leaves"][-1]
    if last.get("classes") is not None:
        yield last
    for nested in _nested(last):
        yield from _heads(nested)


def _follow(description: Description, old: Port, new: Port, grid: list[int] | None) -> None:
    """Make every leaf that names the old images' size or channels, or a token grid, name the new ones."""
    for leaf in description["leaves"]:
        for nested in _nested(leaf):
            _follow(nested, old, new, grid)
        for name in ("channels", "size"):
            if leaf.get(name) is not None and leaf[name] == old[name]:
                leaf[name] = new[name]
        if grid is not None and leaf.get("grid") is not None:
            leaf["grid"] = grid
        if grid is None and "same_as" not in leaf:
            with torch.device("meta"):
                gives = rebuild({"leaves": [leaf], "bounds": [0, 1]}).gives
            grid = list(gives["grid"]) if gives is not None and gives["grid"] is not None else None


def _nested(leaf: Description) -> Iterator[Description]:
    """Descriptions of the chains inside a leaf."""
    for value in leaf.values():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and "chain" in entry:
                yield entry["chain"]


def _load(adapted: Chain, chain: Chain, rule: Mismatch) -> list[str]:
    """Copy what fits into the new chain and say what did not."""
    changes, state, grids = [], chain.state_dict(), (_grid(chain), _grid(adapted))
    for name, tensor in adapted.state_dict().items():
        old = state.get(name)
        if old is not None and old.shape == tensor.shape:
            tensor.copy_(old)
        elif old is not None and name == "0.pos_embed" and rule.position == "resize" and None not in grids:
            tensor.copy_(resized_positions(old, *grids))  # type: ignore[arg-type]
            changes.append(f"{name}: resized from {old.shape[1]} to {tensor.shape[1]} positions")
        else:
            changes.append(f"{name}: drawn afresh, {tuple(tensor.shape)}")
    return changes


def _grid(chain: Chain) -> Grid | None:
    """The token grid that the first leaf gives."""
    gives = chain.leaves[0].gives
    grid: Grid | None = gives["grid"] if gives is not None else None
    return grid


def resized_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A position table (1, N, D) of an ``old`` token grid for a ``new`` one; rows in front of the grid are kept."""
    prefix = table.shape[1] - prod(old)
    grid = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
