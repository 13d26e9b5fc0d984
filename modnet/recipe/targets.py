"""Whether what a stage names is there, and is what the stage wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modnet.errors import RequestError
from modnet.recipe.document import Document
from modnet.recipe.fields import Kind, Ref, references
from modnet.recipe.problems import either
from modnet.recipe.references import Named, resolve_suite
from modnet.recipe.sources import shifts
from modnet.recipe.stages import Stage
from modnet.registry import Params, nearest

SECTIONS: Mapping[Kind, str] = {"data": "data", "model": "models", "stage": "stages"}
PHRASES: Mapping[Kind, str] = {"data": "data", "model": "a model", "stage": "a stage"}


def check_references(document: Document, recipe: Named) -> set[str]:
    """Note every reference to nothing or to the wrong thing; gives the stages that stand on broken ground.

    What was written but could not be read is an error of its own, from which no other error follows.
    """
    names = _Names(document, recipe)
    broken: set[str] = set()
    for name, stage in recipe.stages.items():
        for path, ref, target in references(stage):
            wrong = names.wrong(ref, target)
            if wrong:
                document.complain(("stages", name, *path), wrong)
            if wrong or names.unread(target):
                broken.add(name)
    return broken


@dataclass
class _Names:
    """The names that a document gives, also to what could not be read."""

    document: Document
    recipe: Named

    def of(self, kind: Kind) -> list[str]:
        section = self.document.data.get(SECTIONS[kind]) if kind in SECTIONS else None
        return list(section) if isinstance(section, dict) else []

    def unread(self, target: str) -> bool:
        """Whether a name, or the one that a shift's suffix is added to, stands for what could not be read."""
        read = (self.recipe.data, self.recipe.models, self.recipe.stages)
        if self.kind(target) is None:
            sections = [self.document.data.get(section) for section in SECTIONS.values()]
            if any(not isinstance(section, dict | None) for section in sections):
                return True
            base, dash, suffix = target.rpartition("-")
            return bool(dash) and suffix in shifts() and self.unread(base)
        return not any(target in table for table in read)

    def kind(self, target: str) -> Kind | None:
        return next((kind for kind in SECTIONS if target in self.of(kind)), None)

    def wrong(self, ref: Ref, target: str) -> str:
        """Why a reference is wrong; empty if it is right."""
        held = self.kind(target)
        if self.unread(target):
            return ""
        if "suite" in ref.kinds:
            return _suite_wrong(target, self.recipe)
        if held is None:
            return f"nothing in this recipe has this name; it wants {self.wanted(ref, target)}"
        if held not in ref.kinds:
            return f"is {PHRASES[held]}, but this wants {self.wanted(ref)}"
        if held == "model" and "stage" in ref.kinds:
            return _unweighted(self.recipe.models[target])
        return _gives_wrong(ref, self.recipe.stages[target], target) if held == "stage" else ""

    def wanted(self, ref: Ref, target: str = "") -> str:
        """What a reference wants, with the names that look like the one that was given, or all there are."""
        phrase = " or ".join(PHRASES[kind] for kind in ref.kinds)
        allowed = [name for kind in ref.kinds for name in self.of(kind)]
        every = [name for kind in SECTIONS for name in self.of(kind)]
        if near := nearest(target, allowed) or nearest(target, every):
            return f"{phrase}; did you mean {either(near)}?"
        return f"{phrase} ({either(allowed)})" if allowed else f"{phrase}, and the recipe has none"


def _suite_wrong(target: str, recipe: Named) -> str:
    try:
        resolve_suite(target, recipe)
    except RequestError as error:
        return str(error)
    return ""


def _unweighted(model: Params) -> str:
    if getattr(model, "pretrained", False) or getattr(model, "weights", None):
        return ""
    loads = hasattr(model, "pretrained")
    mend = "set pretrained: true or weights: FILE" if loads else "train it in a stage of its own"
    return f"this model has no weights: {mend}{'' if loads else ', and name that stage here'}"


def _gives_wrong(ref: Ref, stage: Stage, target: str) -> str:
    if ref.gives is None or stage.gives == ref.gives:
        return ""
    form = f"{stage.run}, method {stage.method}" if hasattr(stage, "method") else stage.run
    gives = {"network": "a whole network", "modules": "single modules", "table": "a table", "nothing": "nothing"}
    mend = ""
    if stage.gives == "modules":
        mend = f": join them first with a stage {{run: assemble, from: {target}}}"
    elif stage.gives == "network" and ref.gives == "modules":
        mend = ": it needs no assembly; to go on training it, use {run: train, from: " + target + "}"
    return f"is a stage that gives {gives[stage.gives]} ({form}), but this wants {gives[ref.gives]}{mend}"
