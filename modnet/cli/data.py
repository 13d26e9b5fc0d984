"""``modnet data``: what data there is, and ``modnet data prepare NAME --from PATH`` for the published picture sets."""

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
