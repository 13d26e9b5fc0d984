"""Where something stands in a recipe, what is wrong with it, and the one message that holds all errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modnet.errors import RequestError

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """A key path as it is written on the command line: ``stages.meta.augment.0``."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Spot:
    """Where a key and its value were written; ``path`` is the key path *there* (defaults keep theirs)."""

    key: str
    value: str
    path: str


@dataclass(frozen=True)
class Problem:
    """One error: ``where`` it is (file:line:column), the key path, the value if it matters, and what to do."""

    where: str
    path: str
    message: str
    value: str = ""

    def __str__(self) -> str:
        subject = f"{self.path}: {self.value}" if self.value else self.path
        return f"{self.where}: {subject}: {self.message}" if subject else f"{self.where}: {self.message}"


class RecipeError(RequestError):
    """Everything that is wrong with a recipe, in one message; ``problems`` holds the single errors."""

    def __init__(self, recipe: str, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))  # a default used by five stages is reported once
        count = len(self.problems)
        title = f"{recipe} has {count} errors:" if count > 1 else f"{recipe} has an error:"
        super().__init__("\n".join([title, *(f"  {problem}" for problem in self.problems)]))


def shown(value: Any, most: int = 60) -> str:
    """A value as YAML would write it on one line, shortened."""
    text = _flow(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _flow(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return repr(value) if isinstance(value, str) else str(value)


def either(names: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]])) if quoted else ""
