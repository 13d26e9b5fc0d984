"""``run: route`` in its forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modnet.methods.base import Inputs, Method
from modnet.methods.confidence import ConfidenceRouting
from modnet.methods.conversion import Splitting, Upcycling
from modnet.methods.experts import Concentration, Growth, Pruning
from modnet.methods.lora import LoraExperts
from modnet.recipe.confidence import Confidence
from modnet.recipe.experts import Concentrate, Grow, Prune
from modnet.recipe.lora import Lora
from modnet.recipe.routing import Split, Upcycle
from modnet.recipe.stages import Route

METHODS: dict[type[Route], Callable[[Any, Inputs], Method]] = {
    Upcycle: Upcycling,
    Split: Splitting,
    Confidence: ConfidenceRouting,
    Concentrate: Concentration,
    Prune: Pruning,
    Grow: Growth,
    Lora: LoraExperts,
}


def routing(stage: Route, inputs: Inputs) -> Method:
    """The method of a routing stage, by its ``method:``."""
    return METHODS[type(stage)](stage, inputs)
