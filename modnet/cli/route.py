"""``modnet route RECIPE``; ``--analyse RUN`` and ``--trade-offs RUN`` look at the routers of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import HOME, Debug, Device, DryRun, Of, Overrides, Runs, Seeds, Smoke, Threads, run_verb
from modnet.errors import RequestError


def route(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe, a YAML file, or the folder of a run.")
    ] = None,
    overrides: Overrides = None,
    analyse: Annotated[
        Path | None, typer.Option("--analyse", metavar="RUN", help="Draw what the routers of a finished run do.")
    ] = None,
    trade_offs: Annotated[
        Path | None,
        typer.Option("--trade-offs", metavar="RUN", help="Measure a finished run at other K, capacities, priorities."),
    ] = None,
    of: Of = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    seeds: Seeds = None,
    runs: Runs = HOME,
    threads: Threads = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Route between modules or networks, with what that needs first; or look at the routers of a finished run."""
    for run, what in ((analyse, "analyse"), (trade_offs, "trade-offs")):
        if run is not None:
            if smoke or dry_run or seeds is not None:
                raise RequestError(f"--{what} trains nothing; leave out --smoke, --dry-run and --seeds")
            _look(run, what, recipe, of, threads, device)
    if analyse is not None or trade_offs is not None:
        return
    if of:
        raise RequestError("--of belongs to --analyse and --trade-offs")
    if recipe is None:
        raise RequestError("name a recipe to train, or a finished run to look at: modnet route --analyse RUN")
    run_verb(
        "route",
        recipe,
        overrides,
        smoke=smoke,
        dry_run=dry_run,
        seeds=seeds,
        runs=runs,
        threads=threads,
        device=device,
    )


def _look(
    run: Path, what: str, recipe: str | None, of: list[str] | None, threads: int | None, device: str | None
) -> None:
    """Look at a finished run; raises RequestError if it is none, or a recipe is named as well."""
    if recipe is not None:
        raise RequestError(f"--{what} {run} looks at a finished run as it is; leave out {recipe!r}")
    if not (run / "recipe.yaml").is_file():
        raise RequestError(f"{run} is no run's folder; it would hold recipe.yaml, as runs/NAME/seed-0 does")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if what == "analyse":
        from modnet.report.routing import analyse_run

        analyse_run(run, of=of or (), device=device)
    else:
        from modnet.report.trade_offs import trade_offs

        trade_offs(run, of=of or (), device=device)
