"""``modnet show``: a recipe with everything that it leaves unsaid."""

from __future__ import annotations

from typing import Annotated

import typer

from modnet.cli.common import Debug, Overrides, RecipeName, Smoke, load


def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    raw: Annotated[bool, typer.Option("--raw", help="The file as it is, comments included.")] = False,
    smoke: Smoke = False,
    debug: Debug = False,
) -> None:
    """Print a recipe with every default written out; the text is a recipe again."""
    if raw:
        from modnet.recipe import find_recipe

        typer.echo(find_recipe(recipe).read_text(encoding="utf-8"), nl=False)
        return
    loaded = load(recipe, overrides, smoke)
    for line in loaded.reductions:
        typer.echo(f"# smoke: {line}")
    typer.echo(loaded.to_yaml(), nl=False)
