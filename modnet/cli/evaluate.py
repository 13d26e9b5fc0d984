"""``modnet evaluate RECIPE`` (``eval``), or ``modnet eval RUN --on fashion-mnist-r`` for a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import (
    HOME,
    Debug,
    Device,
    DryRun,
    Of,
    Overrides,
    Runs,
    Seeds,
    Smoke,
    Threads,
    run_verb,
    show_results,
)
from modnet.errors import RequestError

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
USAGE_IMAGES = 1000


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run's folder.")],
    overrides: Overrides = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="SUITE", help="For a run: test sets or shift suites (repeatable)."),
    ] = None,
    of: Of = None,
    circuit: Annotated[
        Path | None,
        typer.Option("--circuit", metavar="DIR", help="For a run: picture, usage and pruning of a circuit, into DIR."),
    ] = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    seeds: Seeds = None,
    runs: Runs = HOME,
    threads: Threads = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Measure trained networks on test sets and shift suites (also: eval)."""
    if Path(target).is_dir():
        _refuse_options_of_recipes(overrides, smoke=smoke, seeds=seeds, dry_run=dry_run)
        import torch

        from modnet.experiment import evaluate_run

        if threads is not None:
            torch.set_num_threads(threads)
        if circuit is not None:
            _look_into(Path(target), words(of), circuit, device)
            return
        show_results(evaluate_run(Path(target), on=words(on), of=words(of), device=device))
        return
    if on or of or circuit:
        raise RequestError(
            f"--on, --of and --circuit are for a finished run, and {target!r} is no folder; "
            "in a recipe, override the stage: stages.NAME.on=[SUITE]"
        )
    run_verb(
        "evaluate",
        target,
        overrides,
        smoke=smoke,
        dry_run=dry_run,
        seeds=seeds,
        runs=runs,
        threads=threads,
        device=device,
    )


def _look_into(run: Path, of: list[str], folder: Path, device: str | None) -> None:
    """Draw a circuit's links, and measure it with parts of its modules and links."""
    if len(of) > 1:
        raise RequestError("--circuit looks into one network at a time; name one with --of")
    from modnet.evaluation.circuit import analyse
    from modnet.experiment import data_of, load, pick_device

    stage = of[0] if of else None
    network = load(run, stage).to(pick_device(device))
    for pruned in analyse(network, data_of(run, stage), folder, SHARES, USAGE_IMAGES):
        left = f"{pruned.mediators} mediators, {pruned.links} links, {pruned.macs / 1e6:.1f} M multiply-adds"
        typer.echo(f"{pruned.share:>5.0%} of the {pruned.what:<7} kept: {pruned.top1:6.2f} % on test ({left})")
    typer.echo(f"{folder / 'links.png'}, {folder / 'circuit.json'}")


def _refuse_options_of_recipes(overrides: list[str] | None, **options: object) -> None:
    """Raise RequestError for what changes a recipe, where the target is a finished run."""
    if overrides:
        raise RequestError(f"a finished run takes no overrides: {' '.join(overrides)}")
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise RequestError(f"a finished run is measured as it is, without {' or '.join(given)}; give a recipe for that")


def words(options: list[str] | None) -> list[str]:
    """``--on a,b --on c`` as one list."""
    return [word for option in options or () for word in option.split(",") if word]
