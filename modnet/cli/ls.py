"""``modnet ls``: recipes, or the names that recipes may use."""

from __future__ import annotations

import fnmatch
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modnet.cli.common import Debug
from modnet.errors import RequestError

if TYPE_CHECKING:
    from rich.table import Table

KINDS = ("recipes", "models", "data", "optimizers", "schedules", "augments", "shifts", "routers", "verbs")


def ls(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(KINDS)}.")] = "recipes",
    pattern: Annotated[str, typer.Argument(metavar="[GLOB]", help="Such as 'vit*'.")] = "*",
    debug: Debug = False,
) -> None:
    """List shipped recipes, or models, data, optimizers … by name."""
    from rich.console import Console
    from rich.table import Table

    if kind not in KINDS and any(c in kind for c in "*?/["):
        kind, pattern = "recipes", kind
    table = Table(box=None, pad_edge=False)
    rows(table, kind, pattern)
    if not table.row_count:
        raise RequestError(f"no {kind} match {pattern!r}")
    console = Console()
    console.print(table)
    if (kind, pattern) == ("recipes", "*"):
        console.print(f"\n`modnet ls KIND` lists {', '.join(KINDS[1:-1])} or {KINDS[-1]}.", highlight=False)


def rows(table: Table, kind: str, pattern: str) -> None:
    """Fill the table; raises RequestError for a kind that there is not."""
    from modnet.recipe import shipped_recipes
    from modnet.registry import TABLES, nearest

    table.add_column(kind)
    table.add_column("")
    if kind == "recipes":
        for name, path in shipped_recipes().items():
            if fnmatch.fnmatch(name, pattern):
                table.add_row(name, headline(path))
        return
    if kind not in TABLES:
        near = nearest(kind, list(KINDS))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(f"{kind!r} is nothing to list; there are {', '.join(KINDS)}{hint}")
    registry = TABLES[kind]
    for name in registry.names(pattern):
        table.add_row(name, registry.get(name).about)


def headline(path: Path) -> str:
    """The first sentence of a recipe's first comment."""
    from modnet.registry import sentence

    lines = path.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("# "), dropwhile(lambda line: not line.startswith("# "), lines))
    return sentence(" ".join(line.removeprefix("# ") for line in comment))
