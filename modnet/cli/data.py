"""``modnet data``: what data there is; ``prepare`` for published picture sets; ``cache`` for stored teacher outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import Debug

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def data(context: typer.Context, debug: Debug = False) -> None:
    """List data sources and what lies in the data folder; or prepare a published set."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from modnet.data.files import data_home
    from modnet.data.inventory import inventory

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("source", no_wrap=True)
    table.add_column("")
    table.add_column("where", overflow="fold")
    for name, about, state in inventory():
        table.add_row(name, about, state)
    console = Console()
    console.print(table)
    console.print(f"\ndata folder: {data_home()} (MODNET_DATA names another)", soft_wrap=True, highlight=False)


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="tiny-imagenet, imagenet, imagenet-r or cub.")],
    source: Annotated[Path, typer.Option("--from", metavar="PATH", help="Its archive, or a folder with it.")],
    target: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to [default: NAME in the data folder].")
    ] = None,
    debug: Debug = False,
) -> None:
    """Check a published picture set and lay it out as PART/CLASS/FILE; goes on where it was stopped."""
    from modnet.data.files import data_home
    from modnet.data.prepare import layout_of
    from modnet.data.prepare import prepare as make

    layout = layout_of(name)
    make(layout, source.expanduser(), (target or data_home() / name).expanduser(), typer.echo)


@app.command("cache")
def cache(
    verify: Annotated[bool, typer.Option("--verify", help="Compare every stored file with its hash.")] = False,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="ID", help="Remove one (as often as needed), or all.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List the stored outputs of teachers (`replay:`), verify or delete them."""
    from modnet.data.files import data_home
    from modnet.engine.replay import replays
    from modnet.errors import RequestError, RunFailed

    home = data_home() / "replays"
    there = {replay.folder.name: replay for replay in replays(home)}
    chosen = list(there) if delete and "all" in delete else list(delete or ())
    if unknown := [name for name in chosen if name not in there]:
        known = ", ".join(there) or "nothing"
        raise RequestError(f"nothing called {', '.join(unknown)} is stored in {home}; there is {known}")
    for name in chosen:
        there[name].delete()
        typer.echo(f"deleted {name}")
    if delete:
        return
    damaged = []
    for name, replay in there.items():
        wrong = replay.damaged() if verify else []
        state = (f"damaged: {wrong[0].relative_to(replay.folder)}" if wrong else "verified") if verify else ""
        damaged += [name] if wrong else []
        facts = f"{replay.epochs()} epochs  {replay.nbytes() / 2**20:,.1f} MiB  {replay.identity['store']}"
        typer.echo(f"{name}  {facts}  {' '.join(replay.layout.shapes)}  {state}".rstrip())
    typer.echo(f"{len(there)} in {home}")
    if damaged:
        raise RunFailed(f"damaged: {', '.join(damaged)}; delete with `modnet data cache --delete ID`")
