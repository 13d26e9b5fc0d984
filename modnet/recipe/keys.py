"""Stage keys: what a stage's result depends on, as one hash.

A key is the SHA-256 of the canonical JSON of verb, settings, models, data, seed, the keys of the input stages, the
data's fingerprint, the plug-ins' sources, and :data:`FORMAT`. The names that a recipe gives to its data, models and
stages are no part of it, nor are paths, and fields marked ``Unkeyed``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modnet.recipe.fields import ByContent, Choice, KeyedIfSet, Ref, Unkeyed, marker
from modnet.recipe.plugins import digest_of
from modnet.recipe.recipe import Recipe
from modnet.recipe.references import resolve_suite
from modnet.registry import DATA, MODELS, Params, Registry, UnknownName

FORMAT = 1
"""Raise it when the same settings come to mean something else: every stage is then trained anew."""


def stage_keys(recipe: Recipe, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The key of every stage, 64 hexadecimal digits.

    ``fingerprints``: by the names of :meth:`Recipe.sources` and of the shift suites.
    """
    plugins = sorted(digest_of(path) for path in recipe.plugins)
    keys: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        content = {
            "format": FORMAT,
            "plugins": plugins,
            "seed": recipe.seed_of(name),
            "stage": _Canonical(recipe, fingerprints, keys).params(stage, skip="seed"),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        keys[name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


class _Canonical:
    """Typed parameters as plain data without names: references are replaced by what they point to."""

    def __init__(self, recipe: Recipe, fingerprints: Mapping[str, str], keys: Mapping[str, str]) -> None:
        self.recipe, self.fingerprints, self.keys = recipe, fingerprints, keys

    def params(self, params: Params, registry: Registry | None = None, skip: str = "") -> dict[str, Any]:
        """All fields but ``skip`` and what changes no result; a preset's name is that of its base."""
        cls = type(params)
        out = {}
        for name, info in cls.model_fields.items():
            optional = marker(cls, name, KeyedIfSet)
            if optional and not optional.counts(getattr(params, name), info.default):
                continue
            if name != skip and not marker(cls, name, Unkeyed):
                out[name] = self.value(cls, name, getattr(params, name))
        if registry and "name" in out:
            out["name"] = _base_name(registry, out["name"])
        return out

    def value(self, cls: type[Params], name: str, value: Any) -> Any:
        """What stands for the value of a field ``name`` of ``cls``."""
        choice, ref = marker(cls, name, Choice), marker(cls, name, Ref)
        if isinstance(value, tuple | list):
            return [self.value(cls, name, item) for item in value]
        if isinstance(value, Params):
            return self.params(value, choice.registry if choice else None)
        if isinstance(value, str) and ref:
            return self.suite(value) if "suite" in ref.kinds else self.target(value)
        if isinstance(value, str) and marker(cls, name, ByContent):
            path = Path(value)
            return {"sha256": digest_of(path)} if path.is_file() else {"path": value}
        return value.as_posix() if isinstance(value, Path) else value

    def target(self, name: str) -> dict[str, Any]:
        """What a name of the recipe stands for."""
        if name in self.recipe.stages:
            return {"key": self.keys[name]}
        if name in self.recipe.models:
            return {"model": self.params(self.recipe.models[name], MODELS)}
        return self.source(name)

    def source(self, name: str) -> dict[str, Any]:
        params = self.recipe.data[name] if name in self.recipe.data else DATA.read(name)
        return {"data": self.params(params, DATA), "fingerprint": self.fingerprints.get(name)}

    def suite(self, name: str) -> dict[str, Any]:
        _, shift = resolve_suite(name, self.recipe)
        if shift is None:
            return self.source(name)
        return {**self.source(name.removesuffix(f"-{shift}")), "shift": shift, "changed": self.fingerprints.get(name)}


def _base_name(registry: Registry, name: str) -> str:
    """What a preset is a preset of, so that ``vit-b`` equals ``vit`` written out; a prefix's names are themselves."""
    try:
        base = registry.get(name).base
    except UnknownName:
        return name
    return name if base.endswith(":") else base
