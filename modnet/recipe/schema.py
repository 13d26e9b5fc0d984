"""From a document to typed parts: data, models and stages, with every error noted where it was written."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from modnet.recipe.document import Document
from modnet.recipe.explain import explain, reason
from modnet.recipe.fields import Choice, NoDefault, attribute_of, keys, marker
from modnet.recipe.problems import Path, either
from modnet.recipe.sources import Source
from modnet.recipe.stages import DISTILLERS, ROUTES, Stage, route_class, stage_class
from modnet.registry import DATA, MODELS, VERBS, Params, Registry, UnknownName, nearest

SECTIONS = ("name", "seed", "plugins", "data", "models", "defaults", "stages", "smoke")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass
class Parts:
    """What could be read of a recipe; what could not is missing here and noted in the document."""

    data: dict[str, Source] = field(default_factory=dict)
    models: dict[str, Params] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)  # stages of which some keys could not be read
    notes: list[str] = field(default_factory=list)


def read_parts(document: Document) -> Parts:
    """Data, models and stages of a document whose plug-ins are loaded."""
    parts = Parts()
    _unknown_sections(document)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        parts.data = _things(document, "data", DATA)
        parts.models = _things(document, "models", MODELS)
        parts.stages, parts.partial = _stages(document)
    parts.notes = list(dict.fromkeys(str(item.message) for item in caught))
    _unique(document)
    return parts


def _unknown_sections(document: Document) -> None:
    for key in document.data:
        if key in SECTIONS:
            continue
        near = nearest(key, list(SECTIONS))
        hint = f"; did you mean {either(near)}?" if near else f"; a recipe has {', '.join(SECTIONS)}"
        if any(key in keys(cls) for cls in _stage_classes()):
            hint = f"; it belongs to stages: write defaults.{key} or stages.NAME.{key}"
        document.complain((key,), f"there is no such key at the top of a recipe{hint}", key=True)


def _stage_classes() -> list[type[Params]]:
    return [*(VERBS.get(verb).params for verb in VERBS.names()), *DISTILLERS.values(), *map(route_class, ROUTES)]


def _section(document: Document, name: str) -> dict[str, Any]:
    found = document.data.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        document.complain((name,), "wants a mapping of names, such as {my_name: …}")
        return {}
    for key in found:
        if name != "defaults" and not NAME.fullmatch(key):
            document.complain((name, key), "a name is made of letters, digits, - and _", key=True, quote=False)
    return found


def _unique(document: Document) -> None:
    """Names are unique across data, models and stages."""
    first: dict[str, Path] = {}
    for section in ("data", "models", "stages"):
        found = document.data.get(section)
        for name in found if isinstance(found, dict) else ():
            if name in first:
                where = document.spot(first[name])
                message = f"this name is taken by {where.path} ({where.key}); every name is used once"
                document.complain((section, name), message, key=True, quote=False)
            first.setdefault(name, (section, name))


def _things(document: Document, section: str, registry: Registry) -> dict[str, Any]:
    """The typed parameters of every entry of a section that could be read."""
    out = {}
    for name, value in _section(document, section).items():
        try:
            out[name] = registry.read(value)
        except ValidationError as error:
            cls = registry.get(value if isinstance(value, str) else value["name"]).params
            explain(document, (section, name), cls, error)
        except ValueError as error:  # the registry's own: no name, or an unknown one
            path: Path = (section, name, "name")
            inside = path if path in document.spots else path[:2]
            document.complain(inside, str(error))
    return out


def _stages(document: Document) -> tuple[dict[str, Stage], set[str]]:
    """The typed stages, with ``defaults`` filled in, and which of them could be read only in part."""
    section = _section(document, "stages")
    if not section:
        document.complain(("stages",), "a recipe needs at least one stage", quote=False)
    filled: dict[str, tuple[type[Stage], dict[str, Any]]] = {}
    for name, value in section.items():
        cls = _class_of(document, ("stages", name), value)
        if cls is not None:
            filled[name] = cls, _with_defaults(document, name, value, cls)
    classes = [cls for cls, _ in filled.values()]
    if len(classes) == len(section):  # else a default may belong to a stage whose verb is misspelt
        _unused_defaults(document, classes)
    out: dict[str, Stage] = {}
    partial = set()
    for name, (cls, values) in filled.items():
        try:
            out[name] = cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            document.data["stages"][name] = values  # so that errors can quote what defaults filled in
            explain(document, ("stages", name), cls, error)
            if rest := _rest(cls, values, error):
                out[name] = rest
                partial.add(name)
    _check_overridden(document, filled)
    return out, partial


def _rest(cls: type[Stage], values: dict[str, Any], error: ValidationError) -> Stage | None:
    """A stage without the keys that are wrong, so that errors among its references are found in the same go."""
    wrong = {item["loc"][0] for item in error.errors(include_url=False) if item["loc"]}
    try:
        rest = {key: value for key, value in values.items() if key not in wrong}
        return cls.model_validate_json(json.dumps(rest), strict=True)
    except ValidationError:
        return None


def _class_of(document: Document, path: Path, value: Any) -> type[Stage] | None:
    if not isinstance(value, dict):
        document.complain(path, "a stage is a mapping, such as {run: train, model: NAME}")
    elif "run" not in value:
        known = ", ".join(VERBS.names())
        document.complain(path, f"`run:` is missing; the verbs are {known}", key=True, quote=False)
    else:
        try:
            return stage_class(value)
        except UnknownName as miss:
            document.complain((*path, "run" if miss.kind == "verb" else "method"), str(miss))
    return None


def _with_defaults(document: Document, name: str, value: dict[str, Any], cls: type[Stage]) -> dict[str, Any]:
    """A stage with the fields that it leaves out."""
    defaults = _section(document, "defaults")
    out = dict(value)
    for key in fillable(cls):
        attribute = attribute_of(cls, key)
        if key in defaults and key not in value:
            out[key] = defaults[key]
            document.copy(("defaults", key), ("stages", name, key))
        held = out.get(key)
        if isinstance(held, dict) and "name" not in held and marker(cls, attribute, Choice):
            shared = defaults.get(key) if key in value else None
            document.copy(("defaults", key), ("stages", name, key))
            out[key] = _named(cls.model_fields[attribute], shared) | held
    return out


def fillable(cls: type[Params]) -> list[str]:
    """The keys of a stage class that ``defaults`` may fill."""
    no = {"run", "method"}
    return [k for k in keys(cls) if k not in no and not marker(cls, attribute_of(cls, k), NoDefault)]


def _named(info: FieldInfo, shared: Any) -> dict[str, Any]:
    """What ``{lr: 0.1}`` without a name changes: the shared optimizer, or else the field's own default."""
    if isinstance(shared, str):
        return {"name": shared}
    if isinstance(shared, dict) and "name" in shared:
        return shared
    own = getattr(info.get_default(call_default_factory=True), "name", None)
    return {"name": own, **shared} if isinstance(shared, dict) else {"name": own}


def _unused_defaults(document: Document, classes: Iterable[type[Stage]]) -> None:
    classes = list(classes)
    usable = {key for cls in classes for key in fillable(cls)}
    for key in _section(document, "defaults"):
        if key in usable:
            continue
        near = nearest(key, sorted(usable))
        verbs = [verb for verb in VERBS.names() if key in fillable(VERBS.get(verb).params)]
        hint = f"; did you mean {either(near)}?" if near else ""
        if verbs and not hint:
            hint = f"; it belongs to {either(verbs)}, of which this recipe has no stage"
        document.complain(("defaults", key), f"no stage of this recipe has such a key{hint}", key=True)


def _check_overridden(document: Document, filled: dict[str, tuple[type[Stage], dict[str, Any]]]) -> None:
    """Check the defaults that every stage overrides, which no stage has checked."""
    for key, value in _section(document, "defaults").items():
        owners = [(cls, values) for cls, values in filled.values() if key in keys(cls)]
        if not owners or any(values.get(key) is value for _, values in owners):
            continue
        cls, values = owners[0]
        try:
            cls.model_validate_json(json.dumps({**values, key: value}), strict=True)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                if item["loc"][:1] == (key,):
                    document.complain(("defaults", *item["loc"]), reason(dict(item)))
