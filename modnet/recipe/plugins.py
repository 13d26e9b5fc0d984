"""Plug-in files of a recipe: Python that registers models, sources, optimizers … before the recipe is checked."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from modnet.recipe.document import Document
from modnet.registry import TABLES, origin

REGISTERED = "__modnet_registered__"
_versions: dict[Path, str] = {}  # the module that each file was last imported as


def load_plugins(document: Document, folder: Path) -> tuple[Path, ...]:
    """Import the files under ``plugins``, relative to the recipe's folder; notes what is missing or fails."""
    listed = document.data.get("plugins", [])
    if not isinstance(listed, list):
        document.complain(("plugins",), "wants a list of files, such as [my_model.py]")
        return ()
    found = []
    for i, name in enumerate(listed):
        path = (folder / str(name)).resolve()
        if wrong := _wrong(path):
            document.complain(("plugins", i), wrong)
        else:
            found.append(path)
    return tuple(found)


def _wrong(path: Path) -> str:
    if not path.is_file():
        return f"there is no file {path}"
    try:
        load_plugin(path)
    except Exception as error:  # whatever a user's file raises is told as an error of the recipe
        return f"importing it failed: {type(error).__name__}: {error}"
    return ""


def load_plugin(path: Path) -> None:
    """Import a file under a name that its content gives: equal content is imported once, wherever it lies.

    What another version of the same file registered is dropped; its module stays, for networks that are built of it.
    """
    name = module_name(path)
    earlier, _versions[path] = _versions.get(path, name), name
    if earlier != name:
        _forget(earlier)
    held = sys.modules.get(name)
    if held is not None and held.__dict__[REGISTERED] == _registered(name):
        return
    _forget(name)
    _execute(name, path)


def module_name(path: Path) -> str:
    """``modnet_plugin_<digest>``: like the keys of stages, it does not change when a recipe is moved."""
    return f"modnet_plugin_{digest_of(path)[:12]}"


def _execute(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that "module:function" strings of its entries resolve
    try:
        with origin(name):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        _forget(name)
        raise
    module.__dict__[REGISTERED] = _registered(name)


def _registered(name: str) -> dict[str, list[str]]:
    return {kind: registry.of(name) for kind, registry in TABLES.items()}


def _forget(name: str) -> None:
    for registry in TABLES.values():
        registry.forget(name)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
