"""Pydantic's errors in our words: where the value was written, what is wrong, what would be right."""

from __future__ import annotations

import re
import typing
from typing import Any

from pydantic import ValidationError

from modnet.recipe.document import Document
from modnet.recipe.fields import keys
from modnet.recipe.problems import Path, either
from modnet.registry import TABLES, Params, UnknownName, nearest


def explain(document: Document, path: Path, cls: type[Params], error: ValidationError) -> None:
    """Note each of pydantic's errors where the value was written, with what would be right."""
    items = error.errors(include_url=False)
    within = {item["loc"][:-1] for item in items}
    switches = {_place(document, path, item["loc"])[0] for item in items if item["type"] == "bool_type"}
    for item in items:
        loc = tuple(item["loc"])
        if item["type"] == "too_short" and loc in within:  # pydantic counts wrong items as absent
            continue
        where, inside = _place(document, path, loc)
        if item["type"] == "extra_forbidden":
            _unknown_key(document, where, _class_at(cls, loc[:-1]))
        elif item["type"] == "missing":
            document.complain(where, f"`{loc[-1]}:` is missing{_purpose(inside)}", key=True, quote=False)
        else:
            if item["type"] == "literal_error" and where in switches:  # a word that may stand for true or false
                continue
            if item["type"] == "unknown_name" and (*where, "name") in document.spots:
                where = (*where, "name")
            document.complain(where, reason(dict(item)))


def _place(document: Document, path: Path, loc: tuple[Any, ...]) -> tuple[Path, tuple[Any, ...]]:
    """The written path that an error's location means; pydantic adds names of union branches, which are skipped."""
    rest: tuple[Any, ...] = loc
    while rest:
        if (*path, rest[0]) in document.spots:
            path = (*path, rest[0])
        rest = rest[1:]
    return path, loc


def _purpose(loc: tuple[Any, ...]) -> str:
    return f" in `{'.'.join(map(str, loc[:-1]))}`" if len(loc) > 1 else ""


def _class_at(cls: type[Params], loc: tuple[Any, ...]) -> type[Params] | None:
    """The class of the mapping at a location, where it can be told without the values."""
    found: type[Params] | None = cls
    for part in loc:
        if found is None:
            return None
        if isinstance(part, int):
            continue
        info = keys(found).get(part)
        parts = [info.annotation, *typing.get_args(info.annotation)] if info else []
        found = next((p for p in parts if isinstance(p, type) and issubclass(p, Params) and p is not Params), None)
    return found


def _unknown_key(document: Document, path: Path, cls: type[Params] | None) -> None:
    held = document.get(path[:-1])
    known = list(keys(cls)) if cls else _keys_of_choice(held)
    near = nearest(str(path[-1]), known)
    hint = f"; did you mean {either(near)}?" if near else f"; known: {', '.join(known)}" if known else ""
    document.complain(path, f"there is no such key{hint}", key=True)


def _keys_of_choice(held: Any) -> list[str]:
    """The keys of a registered thing, found again by its name."""
    name = held.get("name") if isinstance(held, dict) else None
    for registry in TABLES.values():
        try:
            return list(keys(registry.get(str(name)).params))
        except UnknownName:
            continue
    return []


_WANTS = {
    "int_type": "wants a whole number",
    "int_from_float": "wants a whole number",
    "float_type": "wants a number",
    "string_type": "wants text",
    "bool_type": "wants true or false",
    "tuple_type": "wants a list, such as [a, b]",
    "list_type": "wants a list, such as [a, b]",
    "model_type": "wants a mapping, such as {{key: value}}",
    "dict_type": "wants a mapping, such as {{key: value}}",
    "model_attributes_type": "wants a mapping, such as {{key: value}}",
    "finite_number": "wants a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "wants at least {min_length}",
    "too_long": "wants at most {max_length}",
}


def reason(item: dict[str, Any]) -> str:
    """One of pydantic's errors in our words, with a hint that the value suggests."""
    kind, value, context = item["type"], item.get("input"), item.get("ctx") or {}
    if kind in ("literal_error", "enum"):
        return _one_of(str(value), re.findall(r"'([^']*)'", context.get("expected", "")))
    text = _WANTS.get(kind)
    if text is None:
        return str(item["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return text.format(**context) + _hint(kind, value)


def _one_of(value: str, names: list[str]) -> str:
    near = nearest(value, names)
    listing = f"must be {either(names)}" if names else "is none of the values that are known"
    return f"{listing}; did you mean {either(near)}?" if near and len(names) > 2 else listing


def _hint(kind: str, value: Any) -> str:
    if value is None:
        return ", not nothing: leave the key out for its default"
    if not isinstance(value, str):
        if isinstance(value, float) and value.is_integer() and kind.startswith("int"):
            return f": write {int(value)}"
        return ""
    if value.lower() in ("none", "nil", "off", "no") and kind != "bool_type":
        return " (nothing is written `null`)"
    if percent := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value):
        share = float(percent[1]) / 100
        return f" (write {share:g}; only lengths such as `warmup` read a percent sign)"
    if kind == "bool_type" and value.lower() in ("yes", "no", "on", "off"):
        return f": write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if kind in ("int_type", "float_type") and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        return ": take the quotes off"
    return ""
