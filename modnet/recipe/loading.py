"""Reading a recipe: find, parse, override, import plug-ins, type, check, and shrink it if asked to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modnet.errors import RequestError
from modnet.recipe import models, moduleformer, nac, sources, text  # noqa: F401  (they register what recipes may name)
from modnet.recipe.checks import check_stage
from modnet.recipe.document import Document, read
from modnet.recipe.explain import explain
from modnet.recipe.metas import expand_metas
from modnet.recipe.overrides import apply
from modnet.recipe.plugins import load_plugins
from modnet.recipe.problems import RecipeError
from modnet.recipe.recipe import Recipe
from modnet.recipe.references import in_order
from modnet.recipe.schema import Parts, read_parts
from modnet.recipe.shipped import find_recipe
from modnet.recipe.single import single_stage
from modnet.recipe.smoke import SmokeSize
from modnet.recipe.smoke import smoke as at_smoke_size
from modnet.recipe.targets import check_references


def load_recipe(
    name: str | Path, overrides: Sequence[str] = (), smoke: bool = False, seed: int | None = None
) -> Recipe:
    """A recipe by shipped name, path or run folder, with ``key.path=value`` overrides.

    ``smoke``: at its smoke size. ``seed``: instead of the recipe's own. Raises RequestError if there is no such
    recipe, and RecipeError with every error in it, each with its file, line and column.
    """
    path = find_recipe(name)
    document = read(_text(path), _display(path))
    for override in overrides:
        apply(document, override)
    single_stage(document)
    plugins = load_plugins(document, path.parent)
    expand_metas(document)
    parts = read_parts(document)
    _check(document, parts)
    title, own_seed, size = _title(document, path), _seed(document), _smoke_size(document)
    if document.problems:
        raise RecipeError(document.name, document.problems)
    seed = own_seed if seed is None else seed
    recipe = Recipe(title, seed, parts.data, parts.models, parts.stages, path, plugins, notes=parts.notes)
    return at_smoke_size(recipe, size) if smoke else recipe


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: this is not a text file in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _display(path: Path) -> str:
    """The path as a user would write it: relative to where they stand if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _check(document: Document, parts: Parts) -> None:
    """References, order, and whether what is referred to fits; puts the stages in order."""
    broken = parts.partial | check_references(document, parts)
    order = in_order(document, parts)
    if order is None:
        return
    parts.stages = {name: parts.stages[name] for name in order}
    for name, stage in parts.stages.items():
        if name not in broken:
            check_stage(document, parts, name, stage)


def _title(document: Document, path: Path) -> str:
    title: Any = document.data.get("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    if not isinstance(title, str) or not title or any(c in title for c in "/\\\n") or title in (".", ".."):
        document.complain(("name",), "wants a name that can be a folder's: text without slashes")
        return ""
    return title


def _seed(document: Document) -> int:
    seed = document.data.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        document.complain(("seed",), "wants a whole number")
        return 0
    return seed


def _smoke_size(document: Document) -> SmokeSize:
    held = document.data.get("smoke", {})
    if not isinstance(held, dict):
        document.complain(("smoke",), "wants a mapping, such as {images: 4, epochs: 6}")
        return SmokeSize()
    try:
        return SmokeSize.model_validate(held, strict=True)
    except ValidationError as error:
        explain(document, ("smoke",), SmokeSize, error)
        return SmokeSize()
