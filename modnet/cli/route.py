"""``modnet route``: there is no method for it yet."""

from __future__ import annotations

from modnet.cli.common import Debug, Overrides, RecipeName, load
from modnet.errors import RequestError


def route(recipe: RecipeName, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train sparse routing between modules (no method is installed yet)."""
    load(recipe, overrides)
    raise RequestError(
        "no routing method is installed yet, so `modnet route` can train nothing; "
        "`modnet ls verbs` lists what can be run"
    )
