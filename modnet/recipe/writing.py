"""Writing a recipe out with every default, as YAML that reads back to equal stage keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from modnet.recipe import document
from modnet.recipe.fields import references
from modnet.recipe.references import inputs_of
from modnet.registry import EMPTY, TABLES, Params

if TYPE_CHECKING:
    from modnet.recipe.recipe import Recipe


def plain(params: Params, preset: Mapping[str, Any] = EMPTY) -> dict[str, Any]:
    """Parameters as plain data under the keys that a recipe uses; what is nothing by default is left out.

    ``preset``: what the registered name sets by itself, so that nothing in its place must be written.
    """
    values: dict[str, Any] = params.model_dump(mode="json", by_alias=True)
    unset = {
        info.alias or name
        for name, info in type(params).model_fields.items()
        if getattr(params, name) is None and not info.is_required() and info.default is None and name not in preset
    }
    return {key: value for key, value in values.items() if key not in unset}


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as plain data; plug-ins by their full paths, as the text may be kept elsewhere."""
    out: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    if recipe.plugins:
        out["plugins"] = [str(path) for path in recipe.plugins]
    for section in ("data", "models", "stages"):
        entries = getattr(recipe, section)
        if entries:
            out[section] = {name: plain(entry, _preset(section, entry)) for name, entry in entries.items()}
    return out


def _preset(section: str, entry: Params) -> Mapping[str, Any]:
    """What the registered name of a model or of data sets by itself."""
    return TABLES[section].get(str(getattr(entry, "name", ""))).preset if section in TABLES else EMPTY


def stage_manifest(recipe: Recipe, name: str) -> dict[str, Any]:
    """A stage with its seed, its models, its data and the stages it reads, as plain data."""
    stage = recipe.stages[name]
    named = [target for _, _, target in references(stage)]
    return {
        "recipe": recipe.name,
        "name": name,
        "verb": stage.run,
        "seed": recipe.seed_of(name),
        "settings": plain(stage),
        "models": {n: plain(recipe.models[n]) for n in named if n in recipe.models},
        "data": {n: plain(recipe.data[n]) for n in named if n in recipe.data},
        "inputs": inputs_of(stage, recipe),
    }


class _Dumper(yaml.SafeDumper):
    """Writes by the same rules for plain scalars as :mod:`modnet.recipe.document` reads by."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    None: [
        (f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern.pattern})$"))
        for name, pattern in (
            ("null", document.NULL),
            ("bool", document.BOOL),
            ("int", document.INT),
            ("float", document.FLOAT),
        )
    ]
}


def _in_line(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _mapping(dumper: _Dumper, value: dict[str, Any]) -> yaml.Node:
    """In line where it is short and holds no mapping."""
    short = len(str(value)) < 90 and "name" in value and not any(isinstance(v, dict) for v in value.values())
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=short)


_Dumper.add_representer(list, _in_line)
_Dumper.add_representer(dict, _mapping)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as text."""
    text = yaml.dump(resolved(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)
