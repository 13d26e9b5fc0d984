"""``modnet route RECIPE``."""

from __future__ import annotations

from modnet.cli.common import HOME, Debug, Device, DryRun, Overrides, RecipeName, Runs, Seeds, Smoke, Threads, run_verb


def route(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    seeds: Seeds = None,
    runs: Runs = HOME,
    threads: Threads = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Route between modules or networks, with what that needs first."""
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
