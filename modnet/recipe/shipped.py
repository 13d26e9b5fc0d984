"""Recipes that come with the package, and finding a recipe by name, path or run folder."""

from __future__ import annotations

from pathlib import Path

import modnet
from modnet.errors import RequestError
from modnet.recipe.problems import either
from modnet.registry import nearest

SUFFIXES = (".yaml", ".yml")


def shipped_recipes() -> dict[str, Path]:
    """Names such as ``fashion-mnist/m2mkd`` and their files: inside the wheel, or in a checkout's ``recipes``."""
    package = Path(modnet.__file__).parent
    for root in (package / "shipped", package.parent / "recipes"):
        if root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
            return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    return {}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, the folder of a run, or a shipped name; raises RequestError with near names."""
    path = Path(name)
    if path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    shipped = shipped_recipes()
    word = str(name).removesuffix(".yaml").removesuffix(".yml")
    if word in shipped:
        return shipped[word]
    if path.is_dir():
        raise RequestError(f"{path} is a folder without a recipe.yaml, so neither a recipe nor a run")
    ends = [known for known in shipped if known.rsplit("/", 1)[-1] == word]
    near = ends or nearest(word, list(shipped), most=3)
    hint = f"did you mean {either(near)}?" if near else "`modnet ls` lists the recipes that are shipped"
    raise RequestError(f"there is no recipe {str(name)!r}, neither as a file nor among the shipped ones; {hint}")
