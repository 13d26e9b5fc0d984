"""``modnet export``: networks of ours in published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modnet.cli.common import Debug
from modnet.errors import RequestError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or that of an imported network.")],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="The file, or for modules the folder.")],
    layout: Annotated[
        str,
        typer.Option("--layout", metavar="NAME", help="deep-incubation, m2mkd-blocks, m2mkd-students, nac or timm."),
    ],
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Whose network or modules.")] = None,
    split: Annotated[
        bool, typer.Option("--split-experts", help="A tensor for each expert, as older fastmoe has it.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a trained network, or distilled modules, in the layout of a published code."""
    if to.exists():
        raise RequestError(f"{to} exists; name another place")
    from modnet.experiment import load, load_modules
    from modnet.interop.exchange import MODULES, exported, exported_modules

    if layout == MODULES:
        if stage is None:
            raise RequestError(f"--layout {layout} writes the modules of a stage: name it with --stage")
        files = exported_modules(load_modules(run, stage), to, split)
    else:
        files = exported(load(run, stage), layout, to, split)
    for file in files:
        typer.echo(str(file))
