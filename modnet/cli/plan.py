"""``modnet plan``: what a recipe would do, and at what cost."""

from __future__ import annotations

from modnet.cli.common import HOME, Debug, Overrides, RecipeName, Runs, Smoke, load


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Smoke = False,
    runs: Runs = HOME,
    debug: Debug = False,
) -> None:
    """Show each stage: done or to do, what it reads, its size and cost; nothing is trained."""
    loaded = load(recipe, overrides, smoke)
    from rich.console import Console
    from rich.table import Table

    from modnet.experiment import plan as rows_of

    console = Console()
    for line in loaded.reductions:
        console.print(f"smoke: {line}", highlight=False)
    rows = rows_of(loaded, runs=runs)
    table = Table(box=None, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(str("" if row.get(key) is None else row[key]) for key in columns))
    console.print(table)
