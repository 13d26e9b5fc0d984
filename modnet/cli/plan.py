"""``modnet plan``: what a recipe would do, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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


def parts(learns: Mapping[str, int]) -> str:
    """``module0 7.7 M, module1 7.1 M``: what learns apart, with its parameters."""
    from modnet.report.tables import size

    return ", ".join(f"{name} {size(count)}" for name, count in learns.items())


def frozen(row: Mapping[str, Any]) -> str:
    """What stands frozen beside it: parameters, and the stages or models that they are of."""
    from modnet.report.tables import size

    return f"frozen {size(row['frozen'])}" + (f" of {row['reads'].replace(' ', ' and ')}" if row["reads"] else "")


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
    for row in found.stages:
        if len(row.get("parts", ())) > 1:
            console.print(f"{row['stage']} learns {parts(row['parts'])}; {frozen(row)}", markup=False)
    console.print(LEGEND)
    if found.speed is not None:
        console.print(f"times: {found.speed.said}")
