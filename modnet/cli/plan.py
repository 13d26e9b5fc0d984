"""``modnet plan``: what a recipe would do, and at what cost."""

from __future__ import annotations

from typing import Annotated

import typer

from modnet.cli.common import HOME, Debug, Overrides, RecipeName, Runs, Smoke, load

Hardware = Annotated[
    str | None,
    typer.Option("--hardware", metavar="NAME", help="Estimate times for: h100, a100x8, 20T (FLOP/s sustained), here."),
]
LEGEND = (
    "memory in GiB and float32: weights with gradients, activations of one micro-batch, optimizer state; FLOPs of all "
    "epochs, frozen passes included; MACs as published count 5 for each element that a LayerNorm normalises"
)


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    hardware: Hardware = None,
    smoke: Smoke = False,
    runs: Runs = HOME,
    debug: Debug = False,
) -> None:
    """Show what each stage learns, its memory and FLOPs, without data or weights; nothing is trained."""
    loaded = load(recipe, overrides, smoke)
    from rich.console import Console

    from modnet.planning import plan as planned
    from modnet.report.tables import plan_table

    console = Console(highlight=False)
    for line in loaded.reductions:
        console.print(f"smoke: {line}")
    found = planned(loaded, runs=runs, hardware=hardware)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for rows in (found.models, found.stages, found.networks):
        if rows:
            console.print(plan_table(rows))
            console.print()
    console.print(LEGEND)
    if found.speed is not None:
        console.print(f"times: {found.speed.said}")
