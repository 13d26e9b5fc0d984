"""What a result cost: seconds and training FLOPs, told three ways.

``student``: what the student itself learned by; ``passes``: with the frozen teacher's and meta's passes;
``all``: with the training of every stage that it stands on.
"""

from __future__ import annotations

from typing import Any

from modnet.methods.base import Inputs
from modnet.recipe import Recipe, inputs_of


def lineage(name: str, recipe: Recipe) -> list[str]:
    """The stages in which this stage's own parameters learned, the stage itself first."""
    found = [name]
    while (earlier := getattr(recipe.stages[found[-1]], "from_", None)) is not None:
        found.append(earlier)
    return found


def ancestors(name: str, recipe: Recipe) -> set[str]:
    """Every stage that this one stands on, itself included."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += inputs_of(recipe.stages[current], recipe)
    return found


def stage_costs(name: str, inputs: Inputs) -> dict[str, Any]:
    """Seconds and FLOPs of a result, from what its stages recorded."""
    own = [inputs.store.result(inputs.keys[s]) for s in lineage(name, inputs.recipe)]
    every = [inputs.store.result(inputs.keys[s]) for s in ancestors(name, inputs.recipe)]
    student = sum(r["flops"]["student"] for r in own)
    return {
        "seconds": sum(r["seconds"] for r in own),
        "seconds_all": sum(r["seconds"] for r in every),
        "flops_student": student,
        "flops_passes": student + sum(r["flops"]["passes"] for r in own),
        "flops_all": sum(sum(r["flops"].values()) for r in every),
    }
