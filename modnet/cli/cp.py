"""``modnet cp``: a shipped recipe as a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import Debug, RecipeName
from modnet.errors import RequestError, RunFailed


def cp(
    recipe: RecipeName,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where to (a file or a folder).")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe to change it; its first line says which version it came from."""
    import modnet
    from modnet.recipe import find_recipe

    source = find_recipe(recipe)
    file = target / source.name if target.is_dir() else target
    if file.exists() and not force:
        raise RequestError(f"{file} exists; --force overwrites it")
    stamp = f"# Copied from the recipe {recipe} of modnet {modnet.__version__}.\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(stamp + source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(f"{recipe} -> {file}")
