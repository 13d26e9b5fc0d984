"""What the typed classes say about their fields: markers on them, the keys they are written by, references."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic.fields import FieldInfo

from modnet.recipe.problems import Path
from modnet.registry import Params, Registry

Kind = Literal["data", "model", "stage", "suite"]
Gives = Literal["network", "modules", "table", "nothing"]
M = TypeVar("M")


class Ref:
    """Marks a field that names another entry of the recipe: of which kinds, and what a stage must give on."""

    def __init__(self, *kinds: Kind, gives: Gives | None = None) -> None:
        self.kinds, self.gives = kinds, gives


class Choice:
    """Marks a field that holds a registered thing, written as a bare name or a mapping."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry


class Unkeyed:
    """Marks a field that cannot change a result, and so is no part of a stage's key."""


class KeyedIfSet:
    """Marks a field that is part of a stage's key only where it is not its default, nor a value that is ``exact``.

    Young fields bear it, so that older results keep their keys, and fields some of whose values change no result.
    """

    @staticmethod
    def counts(value: Any, default: Any) -> bool:
        """Whether a value belongs in the key."""
        return value != default and not getattr(value, "exact", False)


class NoDefault:
    """Marks a field that a recipe's ``defaults`` do not fill, as its name means something else there."""


class ByContent:
    """Marks a path whose file's content, not its name, is part of a stage's key."""


def keys(cls: type[Params]) -> dict[str, FieldInfo]:
    """The fields of a class by the key that a recipe writes (``from``, not ``from_``)."""
    return {info.alias or name: info for name, info in cls.model_fields.items()}


def attribute_of(cls: type[Params], key: str) -> str:
    """The attribute name behind a key: ``from_`` for ``from``."""
    return next(name for name, info in cls.model_fields.items() if (info.alias or name) == key)


@cache
def marker(cls: type[Params], name: str, kind: type[M]) -> M | None:
    """The marker of a kind on a field (by attribute name), also inside ``tuple[…]`` and ``… | None``."""
    info = cls.model_fields[name]
    return next((m for m in _marks(info.annotation, *info.metadata) if isinstance(m, kind)), None)


def _marks(annotation: Any, *metadata: Any) -> Iterator[Any]:
    yield from metadata
    for part in typing.get_args(annotation):
        if not isinstance(part, str):
            yield part
            yield from _marks(part)


def references(params: Params, path: Path = ()) -> Iterator[tuple[Path, Ref, str]]:
    """Every reference in typed parameters: its path below them, what it may name, and the name."""
    for name, info in type(params).model_fields.items():
        below = (*path, info.alias or name)
        value = getattr(params, name)
        ref = marker(type(params), name, Ref)
        if isinstance(value, Params):
            yield from references(value, below)
        elif ref and isinstance(value, str):
            yield below, ref, value
        elif ref and isinstance(value, tuple):
            yield from (((*below, i), ref, item) for i, item in enumerate(value))
