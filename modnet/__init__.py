"""modnet: experiments with modular neural networks, from one recipe to a table with error bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modnet.chain import Chain, Module, Pass, Port
    from modnet.experiment import load, run

_HOMES = {
    "Chain": "modnet.chain",
    "Module": "modnet.chain",
    "Pass": "modnet.chain",
    "Port": "modnet.chain",
    "load": "modnet.experiment",
    "run": "modnet.experiment",
}
_PACKAGES = ("surgery",)

__all__ = ["Chain", "Module", "Pass", "Port", "load", "run", "surgery"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that ``import modnet`` costs nothing."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"modnet.{name}")
    raise AttributeError(f"module 'modnet' has no attribute {name!r}")
