"""``modnet bench``: speed as ratios, measured side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modnet.cli.common import Debug
from modnet.errors import RequestError, RunFailed

# As in modnet.bench.subjects, which takes a second to import.
SUBJECTS = (
    "startup",
    "loader",
    "step",
    "checkpoint",
    "modules",
    "teacher-cache",
    "sweep",
    "moe",
    "bf16",
    "efficiency",
    "scaling",
    "timm-script",
    "memory",
)
SLOW = ("memory",)  # only when it is asked for by its name


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUBJECT]...", help=f"{', '.join(SUBJECTS)}; or all, which is all but memory [default: all]."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="How often each pair is timed.")] = 5,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the figures as JSON.")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Tell what changed since figures were saved.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Write a trace that opens in ui.perfetto.dev.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Time modnet against plain baselines; prints how many times faster it is."""
    chosen = subjects_of(subjects or ["all"])
    from rich.console import Console

    from modnet.bench.machine import machine
    from modnet.bench.pairs import Finding, Skipped, changes
    from modnet.bench.profiles import profiled
    from modnet.bench.subjects import SUBJECTS as MEASURED
    from modnet.report.benches import bench_table, told
    from modnet.store import atomic_write_json

    before = saved(compare) if compare else None
    console, here = Console(), machine()
    found: list[Finding] = []
    failed: list[str] = []
    with profiled(profile):
        for name in chosen:
            console.print(f"measuring {name}", highlight=False)
            try:
                found += MEASURED[name](repeats)
            except Exception as error:  # the others are measured all the same
                if debug:
                    raise
                found.append(Skipped(name, f"failed, {type(error).__name__}: {error}"))
                failed.append(name)
            if save is not None:  # after every subject, so that none is lost
                atomic_write_json(save, {"machine": here, "comparisons": [c.plain() for c in found]})
    console.print(bench_table(found))
    elsewhere = (
        [] if before is None else [*moved(before.get("machine", {}), here), *changes(found, before["comparisons"])]
    )
    for line in (*told(found), *elsewhere):
        console.print(line, highlight=False, markup=False)
    console.print(", ".join(f"{key} {value}" for key, value in here.items()), highlight=False)
    if failed:
        raise RunFailed(f"not measured: {', '.join(failed)}; --debug shows where each failed")


def subjects_of(named: list[str]) -> list[str]:
    """The subjects that are asked for, ``all`` taken apart; raises RequestError for what is not one."""
    unknown = [name for name in named if name not in (*SUBJECTS, "all")]
    if unknown:
        raise RequestError(f"nothing called {', '.join(unknown)} is measured; there are {', '.join(SUBJECTS)}, all")
    usual = [name for name in SUBJECTS if name not in SLOW]
    return list(dict.fromkeys(part for name in named for part in (usual if name == "all" else [name])))


def moved(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the machine of a file and this one, but for how busy they are."""
    apart = [key for key in before.keys() & now.keys() - {"load"} if before[key] != now[key]]
    told = "; ".join(f"{key} {before[key]} then, {now[key]} now" for key in sorted(apart))
    return [f"not the same machine or versions: {told}"] if apart else []


def saved(path: Path) -> dict[str, Any]:
    """The figures in a file that ``--save`` wrote; raises RequestError for another one."""
    from modnet.store import read_json

    remedy = "give --compare a file that --save wrote"
    found = read_json(path, remedy)
    if not isinstance(found, dict) or "comparisons" not in found:
        raise RequestError(f"{path} holds no figures of modnet bench; {remedy}")
    return found
