"""``modnet bench``: speed as ratios, measured side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modnet.cli.common import Debug
from modnet.errors import RequestError

SUBJECTS = (
    "startup, loader, step, checkpoint, modules, teacher-cache, sweep, moe, bf16, efficiency, scaling, timm-script, "
    "memory"
)


def bench(
    subjects: Annotated[
        list[str] | None, typer.Argument(metavar="[SUBJECT]...", help=f"{SUBJECTS} [default: all but memory].")
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
    from rich.console import Console

    from modnet.bench.machine import machine
    from modnet.bench.pairs import Finding, changes
    from modnet.bench.profiles import profiled
    from modnet.bench.subjects import SLOW, SUBJECTS
    from modnet.report.benches import bench_table, told
    from modnet.store import atomic_write_json

    chosen = [name for name in subjects or ["all"] if name != "all"] or [n for n in SUBJECTS if n not in SLOW]
    unknown = [name for name in chosen if name not in SUBJECTS]
    if unknown:
        raise RequestError(f"nothing called {', '.join(unknown)} is measured; there are {', '.join(SUBJECTS)}, all")
    before = saved(compare) if compare else []
    console = Console()
    found: list[Finding] = []
    with profiled(profile):
        for name in chosen:
            console.print(f"measuring {name}", highlight=False)
            found += SUBJECTS[name](repeats)
            if save is not None:  # after every subject, so that none is lost
                atomic_write_json(save, {"machine": machine(), "comparisons": [c.plain() for c in found]})
    console.print(bench_table(found))
    for line in (*told(found), *(changes(found, before) if compare else ())):
        console.print(line, highlight=False, markup=False)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), highlight=False)


def saved(path: Path) -> list[dict[str, Any]]:
    """The figures in a file that ``--save`` wrote; raises RequestError for another one."""
    from modnet.store import read_json

    remedy = "give --compare a file that --save wrote"
    found = read_json(path, remedy)
    if not isinstance(found, dict) or "comparisons" not in found:
        raise RequestError(f"{path} holds no figures of modnet bench; {remedy}")
    figures: list[dict[str, Any]] = found["comparisons"]
    return figures
