"""``modnet distill RECIPE``, or ``modnet distill --teacher vit-b`` without a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from modnet.cli.common import HOME, Debug, Device, DryRun, Overrides, Runs, Seeds, Smoke, Threads, run_verb
from modnet.errors import RequestError

SHIPPED = "distill"


def distill(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe; without one, give --teacher.")
    ] = None,
    overrides: Overrides = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="Fill the shipped recipe `distill`.")
    ] = None,
    student: Annotated[str | None, typer.Option("--student", metavar="MODEL", help="Its student.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="Its images.")] = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    seeds: Seeds = None,
    runs: Runs = HOME,
    threads: Threads = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Distil networks from teachers, with what that needs first."""
    words = list(overrides or ())
    verb: str | None = "distill"
    if recipe is not None and "=" in recipe:  # without a recipe, the first word is an override
        words.insert(0, recipe)
        recipe = None
    filled = {"models.teacher": teacher, "models.student": student, "data.images": data}
    filling = [fill(path, name) for path, name in filled.items() if name is not None]
    if recipe is None:
        if teacher is None:
            raise RequestError("name a recipe, or a teacher: modnet distill --teacher vit-b")
        recipe, verb = SHIPPED, None  # to its end: the student is assembled and measured, too
    elif filling:
        raise RequestError(
            "--teacher, --student and --data fill the shipped recipe; in a recipe of your own, "
            f"write overrides: {' '.join(filling)}"
        )
    run_verb(
        verb,
        recipe,
        [*filling, *words],
        smoke=smoke,
        dry_run=dry_run,
        seeds=seeds,
        runs=runs,
        threads=threads,
        device=device,
    )


def fill(path: str, name: str) -> str:
    """The override that puts a name in place; the recipe's own sizes stay, except for a timm network."""
    return f"{path}={{name: {name}}}" if name.startswith("timm:") else f"{path}.name={name}"
