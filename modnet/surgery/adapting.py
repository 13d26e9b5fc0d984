"""Fitting a trained network to other images or classes: a fresh head, a resized position table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain, Port, describe, rebuild
from modnet.randomness import Key
from modnet.recipe.stages import Mismatch


def adapt(chain: Chain, port: Port, classes: int, rule: Mismatch, key: Key) -> tuple[Chain, list[str]]:
    """A network of the same trained leaves for images of ``port`` and ``classes`` classes, and what was changed.

    The chain itself comes back, with no changes, where it already fits. The position table is resized bicubically
    over its grid (``align_corners`` off; class-token rows kept) or drawn afresh; the head likewise.
    """
    description = describe(chain)
    stem, head = description["leaves"][0], description["leaves"][-1]
    if chain.takes != port and "size" in stem:
        stem |= {"channels": port["channels"], "size": port["size"]}
    if head.get("classes") not in (None, classes) and rule.head == "fresh":
        head["classes"] = classes
    if description == describe(chain):
        return chain, []
    with key.fold("adapt").forked():
        adapted = _with_new_grid(description, chain, port)
    prefix = adapted.leaves[0].gives["prefix"] if adapted.leaves[0].gives is not None else 0
    return adapted, _load(adapted, chain.state_dict(), rule, prefix or 0)


def _with_new_grid(description: dict[str, Any], chain: Chain, port: Port) -> Chain:
    """Rebuild; leaves after the stem that name the token grid follow the new stem's."""
    stem = rebuild({"leaves": description["leaves"][:1], "bounds": [0, 1]})
    grid = stem.gives["grid"] if stem.gives is not None else None
    for leaf in description["leaves"][1:]:
        if "grid" in leaf:
            leaf["grid"] = grid
    return rebuild(description)


def _load(adapted: Chain, state: dict[str, Tensor], rule: Mismatch, prefix: int) -> list[str]:
    changes, own = [], adapted.state_dict()
    for name, tensor in own.items():
        old = state.get(name)
        if old is not None and old.shape == tensor.shape:
            tensor.copy_(old)
        elif old is not None and name.endswith("pos_embed") and rule.position == "resize":
            tensor.copy_(resized_positions(old, tensor.shape[1], prefix))
            changes.append(f"{name}: resized from {old.shape[1]} to {tensor.shape[1]} positions")
        else:
            changes.append(f"{name}: drawn afresh, {tuple(tensor.shape)}")
    return changes


def resized_positions(table: Tensor, tokens: int, prefix: int) -> Tensor:
    """A position table (1, N, D) resized to ``tokens`` rows; the first ``prefix`` rows (class tokens) are kept."""
    old, new = (round((count - prefix) ** 0.5) for count in (table.shape[1], tokens))
    grid = table[:, prefix:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)], dim=1)
