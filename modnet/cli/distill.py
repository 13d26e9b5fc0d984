"""``modnet distill RECIPE``, or ``modnet distill --teacher vit-b`` without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import HOME, Debug, Device, DryRun, Overrides, Runs, Seeds, Smoke, Threads, run_verb
from modnet.errors import RequestError

SHIPPED = "distill"
IMAGES = "fashion-mnist"  # the recipe's own


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
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="The teacher's weights, safetensors.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The weights that timm has for it.")] = False,
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
        filling += brought(teacher, data or IMAGES, weights, pretrained, smoke)
        recipe, verb = SHIPPED, None  # to its end: the student is assembled and measured, too
    elif filling or weights or pretrained:
        raise RequestError(
            "--teacher, --student, --data, --weights and --pretrained fill the shipped recipe; in a recipe of your "
            f"own, write overrides: {' '.join(filling) or 'models.NAME.weights=FILE'}"
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


def brought(teacher: str, source: str, weights: Path | None, pretrained: bool, smoke: bool) -> list[str]:
    """The overrides for a teacher that brings its weights, told as they are; raises RequestError for both kinds."""
    if weights is not None and pretrained:
        raise RequestError("--weights FILE and --pretrained both say where the teacher's weights come from: give one")
    if weights is None and not pretrained and not packaged(teacher):
        return []
    if smoke:
        typer.echo("note: a smoke run is of another size, and trains the teacher in place of using its weights")
        return []
    from modnet.cli.teachers import with_weights

    filling, said = with_weights(teacher, source, weights=weights, pretrained=pretrained)
    typer.echo(f"note: {said}")
    return filling


def packaged(name: str) -> bool:
    """Whether a registered model comes with its weights, without being asked for them."""
    from modnet.recipe import models
    from modnet.registry import MODELS

    return name in models.TIMM_NAMES and "weights" in MODELS.get(name).preset


def fill(path: str, name: str) -> str:
    """The override that puts a name in place; the recipe's own sizes stay where the network has such sizes."""
    from modnet.recipe.models import ViT
    from modnet.registry import MODELS, UnknownName

    try:
        sized = not path.startswith("models.") or issubclass(MODELS.get(name).params, ViT)
    except UnknownName:
        sized = True  # the recipe's checks say what there is instead
    return f"{path}.name={name}" if sized else f"{path}={{name: {name}}}"
