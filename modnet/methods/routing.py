"""``run: route`` in its forms."""

from __future__ import annotations

from modnet.methods.base import Inputs, Method
from modnet.methods.confidence import ConfidenceRouting
from modnet.recipe.confidence import Confidence
from modnet.recipe.stages import Route


def routing(stage: Route, inputs: Inputs) -> Method:
    """The method of a routing stage, by its ``method:``."""
    assert isinstance(stage, Confidence)
    return ConfidenceRouting(stage, inputs)
