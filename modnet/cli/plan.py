"""``modnet plan``: what a recipe would do, and at what cost."""

from __future__ import annotations

from modnet.cli.common import HOME, Debug, Overrides, RecipeName, Runs, Smoke, load


def plan(
    recipe: RecipeName, overrides: Overrides = None, smoke: Smoke = False, runs: Runs = HOME, debug: Debug = False
) -> None:
    """Show each stage: done or to do, what it reads, its size and cost; nothing is trained."""
    loaded = load(recipe, overrides, smoke)
    from rich.console import Console

    from modnet.experiment import plan as rows_of
    from modnet.report.tables import plan_table

    console = Console()
    for line in loaded.reductions:
        console.print(f"smoke: {line}", highlight=False)
    console.print(plan_table(rows_of(loaded, runs=runs)))
