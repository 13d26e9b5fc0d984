"""Plug-in files of a recipe: Python that registers models, sources, optimizers … before the recipe is checked."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from modnet.recipe.document import Document
from modnet.registry import TABLES, origin


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
    """Import one file; again only if its content has changed, and then what it registered before is dropped."""
    name = f"modnet_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    digest = digest_of(path)
    if name in sys.modules and sys.modules[name].__dict__.get("__digest__") == digest:
        return
    for registry in TABLES.values():
        registry.forget(str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__digest__"] = digest
    sys.modules[name] = module  # so that "module:function" strings of its entries resolve
    try:
        with origin(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        for registry in TABLES.values():
            registry.forget(str(path))
        raise


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
