"""``key.path=value`` from the command line, put into a document as if the file said so."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from modnet.errors import RequestError
from modnet.recipe.document import Document, Reader
from modnet.recipe.problems import Path, Spot, dotted


def apply(document: Document, override: str) -> None:
    """Set one value; it is YAML, read as strictly as the file. Raises RequestError for what is not ``key=value``."""
    left, equals, text = override.partition("=")
    parts = left.strip().split(".")
    if not equals or not all(parts):
        raise RequestError(f"{override!r} is no override: write key.path=value, such as stages.student.epochs=3")
    at = "on the command line"
    _own_list(document, parts)
    path = _path(document, parts)
    for old in [spot for spot in document.spots if spot[: len(path)] == path]:
        del document.spots[old]
    value = Reader(text, "the command line", document, path, at).document()
    document.spots.setdefault(path, Spot(at, at, dotted(path)))
    _put(document, path, value, at)


def _own_list(document: Document, parts: list[str]) -> None:
    """Give a stage its own copy of a list of ``defaults`` before one place in it is changed."""
    if len(parts) < 4 or parts[0] != "stages":
        return
    stage, shared = document.get(tuple(parts[:2])), document.get(("defaults", parts[2]))
    if isinstance(stage, dict) and parts[2] not in stage and isinstance(shared, list):
        stage[parts[2]] = deepcopy(shared)
        document.copy(("defaults", parts[2]), tuple(parts[:3]))


def _path(document: Document, parts: list[str]) -> Path:
    """Words of the path, and numbers where the document has a list."""
    path: Path = ()
    for part in parts:
        within_list = isinstance(document.get(path), list)
        path = (*path, int(part) if within_list and part.isdigit() else part)
    return path


def _put(document: Document, path: Path, value: Any, at: str) -> None:
    holder: Any = document.data
    for depth, part in enumerate(path[:-1], start=1):
        below = holder[part] if _has(holder, part) else None
        if below is None:
            below = {}
            document.spots.setdefault(path[:depth], Spot(at, at, dotted(path[:depth])))
        elif isinstance(below, str):  # `optimizer: muon` and optimizer.lr=0.1: a bare name becomes a mapping
            document.spots[(*path[:depth], "name")] = document.spot(path[:depth])
            below = {"name": below}
        elif not isinstance(below, (dict, list)):
            document.complain(path[:depth], f"is no mapping, so {dotted(path)} cannot be set in it", key=True)
            return
        _set(document, holder, part, below, path[:depth])
        holder = below
    _set(document, holder, path[-1], value, path)


def _has(holder: Any, part: str | int) -> bool:
    return (isinstance(part, int) and part < len(holder)) if isinstance(holder, list) else part in holder


def _set(document: Document, holder: Any, part: str | int, value: Any, path: Path) -> None:
    if isinstance(holder, list) and not _has(holder, part):
        document.complain(path, f"is a place in a list of {len(holder)}: count from 0", key=True, quote=False)
        return
    holder[part] = value
