"""``run: route``."""

from __future__ import annotations

from modnet.errors import RequestError
from modnet.methods.base import Inputs
from modnet.recipe.stages import Route


def routing(stage: Route, inputs: Inputs) -> None:
    """Raises RequestError: no routing method is installed yet."""
    raise RequestError("no routing method is installed yet, so a stage with run: route cannot be trained")
