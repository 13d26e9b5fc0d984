"""What the commands that run recipes share: their options, and handing a recipe to the experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modnet.cli.failures import show_tracebacks
from modnet.cli.launch import follows
from modnet.errors import RequestError

if TYPE_CHECKING:
    from modnet.recipe import Recipe

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe, a YAML file, or the folder of a run.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it: stages.student.epochs=3")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same stages at toy size; each reduction is printed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what is done and what is to do; train nothing.")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="LIST", help="One run for each seed: 0-4 or 0,2,5.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", envvar="MODNET_RUNS", help="Where runs lie.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads to compute with.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 … [default: the GPU if there is one]")
]
Debug = Annotated[bool, typer.Option("--debug", callback=show_tracebacks, help="Show where an error was raised.")]
Of = Annotated[list[str] | None, typer.Option("--of", metavar="STAGE", help="For a run: which networks (repeatable).")]
HOME = Path("runs")


def run_verb(
    verb: str | None,
    recipe: str,
    overrides: Sequence[str] | None,
    *,
    smoke: bool,
    dry_run: bool,
    seeds: str | None,
    runs: Path,
    threads: int | None,
    device: str | None,
) -> None:
    """Bring the stages of a verb (None: all) up to date; raises UserError."""
    chosen = parse_seeds(seeds)
    loaded = load(recipe, overrides, smoke)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modnet").setLevel(logging.WARNING if follows() else logging.INFO)
    from modnet.experiment import run

    show_results(run(loaded, runs=runs, verb=verb, dry_run=dry_run, seeds=chosen, threads=threads, device=device))


def show_results(summary: Mapping[str, Any]) -> None:
    """Print the table of a summary, if anything was measured, and where the run lies."""
    from rich.console import Console

    from modnet.report.tables import results_table

    console = Console(quiet=follows())
    if summary.get("rows"):
        console.print(results_table(summary, console.width))
    if "folder" in summary:
        console.print(f"run folder: {summary['folder']}", soft_wrap=True, highlight=False)


def load(recipe: str, overrides: Sequence[str] | None, smoke: bool = False) -> Recipe:
    """A recipe from the command line's words; prints its notes."""
    from modnet.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), smoke=smoke)
    for note in () if follows() else loaded.notes:
        typer.echo(f"note: {note}", err=True)
    return loaded


def parse_seeds(text: str | None) -> list[int] | None:
    """``0-4`` and ``0,2,5`` and mixtures, in order and each once; raises RequestError for anything else."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RequestError(f"--seeds {text!r}: write a range such as 0-4, or a list such as 0,2,5")
        if dash and int(last) < int(first):
            raise RequestError(f"--seeds {text!r}: the range {part.strip()} runs backwards")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))
