"""Strict YAML: plain data in which every key and value knows its line and column.

The text is read as a stream of parser events, and only mappings, lists and scalars are built from them: tags, anchors
and aliases are refused, so no YAML can run code or grow. Scalars follow YAML 1.2, in which ``1e-3`` is a number and
``on``, ``no`` and ``010`` are not truth values or octals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from modnet.errors import RequestError
from modnet.recipe.problems import Path, Problem, Spot, dotted, shown

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9][0-9_]*")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.nan|\.NaN|\.NAN")


def scalar(text: str) -> Any:
    """What a plain (unquoted) scalar means: None, a truth value, a number, or text."""
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text.replace("_", ""))
    if FLOAT.fullmatch(text):
        special = re.sub(r"\.(?=inf|nan)", "", text.lower())
        return float(special.replace("_", ""))
    return text


@dataclass
class Document:
    """Plain ``data`` and, for every path in it, the :class:`Spot` where it was written."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    spots: dict[Path, Spot] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def get(self, path: Path) -> Any:
        """The value at a path, None where there is none."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def spot(self, path: Path) -> Spot:
        """The spot of a path, or of the nearest thing around it."""
        while path and path not in self.spots:
            path = path[:-1]
        return self.spots.get(path) or Spot(self.name, self.name, "")

    def complain(self, path: Path, message: str, *, key: bool = False, quote: bool = True) -> None:
        """Note an error about the value at a path (or about its key); quotes the value unless told not to."""
        spot = self.spot(path)
        inside = path in self.spots
        written = spot.path if inside else dotted(path)
        value = shown(self.get(path)) if quote and inside else ""
        self.problems.append(Problem(spot.key if key else spot.value, written, message, value))

    def copy(self, source: Path, target: Path) -> None:
        """Let the spots of everything at and under ``source`` hold for ``target`` too."""
        size = len(source)
        found = [(path, spot) for path, spot in self.spots.items() if path[:size] == source]
        for path, spot in found:
            self.spots.setdefault(target + path[size:], spot)


def read(text: str, name: str) -> Document:
    """Read a recipe's text; raises RequestError for what is not YAML at all, with its position."""
    document = Document(name)
    value = Reader(text, name, document, ()).document()
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise RequestError(f"{name}: a recipe is a mapping (`name: …`, `stages: …`), not {shown(value)}")
    document.data = value
    return document


class Reader:
    """Builds plain data from parser events, noting positions and refusing what is not plain.

    ``at`` overrides the position of everything, for values that come from the command line; ``root`` is the path at
    which the value will stand.
    """

    def __init__(self, text: str, name: str, document: Document, root: Path, at: str = "") -> None:
        self.name, self.out, self.root, self.at = name, document, root, at
        self.events: Iterator[Any] = self._events(text)

    def _events(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = self.at or (f"{self.name}:{mark.line + 1}:{mark.column + 1}" if mark else self.name)
            said = ", ".join(filter(None, [error.context, error.problem]))
            raise RequestError(f"{where}: this is not YAML: {said}") from None
        except yaml.YAMLError as error:
            raise RequestError(f"{self.at or self.name}: this is not YAML: {error}") from None

    def document(self) -> Any:
        """The value of the only document in the text; None for an empty text."""
        value, seen = None, False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent) and seen:
                raise RequestError(f"{self._where(event)}: a recipe is one YAML document; this starts another")
            if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent, yaml.AliasEvent)):
                value, seen = self._value(event, self.root, self._where(event)), True
        return value

    def _where(self, event: Any) -> str:
        return self.at or f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def _value(self, event: Any, path: Path, key_at: str) -> Any:
        where = self._where(event)
        self.out.spots[path] = Spot(key_at, where, dotted(path))
        self._refuse(event, path, where)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        if isinstance(event, yaml.AliasEvent):
            return None
        return scalar(event.value) if event.implicit[0] else event.value

    def _refuse(self, event: Any, path: Path, where: str) -> None:
        if getattr(event, "tag", None):
            message = f"YAML tags ({event.tag}) are not read in recipes: write plain values"
            self.out.problems.append(Problem(where, dotted(path), message))
        if getattr(event, "anchor", None):
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            message = f"{mark}{event.anchor}: anchors and aliases are not read in recipes: use `defaults`"
            self.out.problems.append(Problem(where, dotted(path), message))

    def _mapping(self, path: Path) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            where = self._where(event)
            key = self._key(event, path, where)
            below = (*path, key)
            if key in out:
                first = self.out.spots[below]
                self._value(next(self.events), (*path, key, "(again)"), where)
                message = f"this key was already given at {first.key}"
                self.out.problems.append(Problem(where, dotted(below), message))
                continue
            out[key] = self._value(next(self.events), below, where)
        return out

    def _key(self, event: Any, path: Path, where: str) -> str:
        if isinstance(event, yaml.ScalarEvent):
            self._refuse(event, path, where)
            return str(event.value)
        raise RequestError(f"{where}: a key is a word, not a list, a mapping or an alias")

    def _sequence(self, path: Path) -> list[Any]:
        out: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            out.append(self._value(event, (*path, len(out)), self._where(event)))
        return out
