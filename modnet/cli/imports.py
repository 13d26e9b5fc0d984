"""``modnet import``: published checkpoints as networks that modnet loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modnet.cli.common import Debug
from modnet.errors import RequestError

if TYPE_CHECKING:
    from modnet.registry import Registry

Patterns = Annotated[
    list[str] | None, typer.Option("--allow-missing", metavar="PATTERN", help="Tensors that the file may lack.")
]
Leftovers = Annotated[
    list[str] | None, typer.Option("--allow-unexpected", metavar="PATTERN", help="Tensors that may be left over.")
]


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="A whole network, or its modules in order.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder for the network.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="vmoe-b, or {name: vit, width: 64, ...}.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="SOURCE", help="Whose images and classes it is for.")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Of images, if not the data's.")] = None,
    allow_missing: Patterns = None,
    allow_unexpected: Leftovers = None,
    debug: Debug = False,
) -> None:
    """Read a published checkpoint; each missing or unexpected tensor is named and refused unless allowed."""
    from modnet.recipe import models, nac, sources  # noqa: F401  (they register the names)
    from modnet.registry import DATA, MODELS

    params = None if model is None else read_params(MODELS, "--model", model)
    source = None if data is None else read_params(DATA, "--data", data)
    if (to / "network.json").exists():
        raise RequestError(f"{to} holds a network already; name another folder")
    from modnet.chain import Port
    from modnet.data.planned import planned
    from modnet.engine.artifacts import save_chain
    from modnet.interop.exchange import Wanted, imported

    wanted = Wanted(params, allow_missing=allow_missing or (), allow_unexpected=allow_unexpected or ())
    if source is not None:
        known = planned(source)
        wanted.port, wanted.classes = known.port, len(known.classes)
    if size is not None:
        channels = 3 if wanted.port is None else wanted.port["channels"]
        wanted.port = Port.of("image", channels=channels, size=size)
    chain = imported(files, wanted)
    to.mkdir(parents=True, exist_ok=True)
    save_chain(to, "network", chain)
    for line in wanted.said:
        typer.echo(line)
    typer.echo(f"{to}: {chain.takes} to {chain.gives}, modules of {list(chain.depths)} blocks")
    typer.echo(f"use it as weights: {to / 'network.safetensors'} of a model, or as modnet.load({str(to)!r})")


def read_params(registry: Registry, option: str, text: str) -> Any:
    """Typed parameters of one of a registry's entries, written as in a recipe; raises RequestError."""
    import yaml
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    try:
        return registry.read(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RequestError(f"{option} {text}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (PydanticCustomError, yaml.YAMLError) as error:
        raise RequestError(f"{option} {text}: {error}") from None
