"""``modnet validate``: whether recipes are right."""

from __future__ import annotations

from typing import Annotated

import typer

from modnet.cli.common import Debug, Smoke, load
from modnet.errors import RequestError


def validate(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, and changes to each.")
    ],
    smoke: Smoke = False,
    debug: Debug = False,
) -> None:
    """Check recipes; every error of every recipe is told, with its line and column."""
    overrides = [word for word in recipes if "=" in word]
    names = [word for word in recipes if "=" not in word]
    if not names:
        raise RequestError("name a recipe to validate")
    wrong = []
    for name in names:
        try:
            loaded = load(name, overrides, smoke)
        except RequestError as error:
            wrong.append(str(error))
        else:
            typer.echo(f"{name}: {loaded.description()}, all right")
    if wrong:
        raise RequestError("\n".join(wrong))
