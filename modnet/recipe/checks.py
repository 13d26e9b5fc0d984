"""Whether the parts of a recipe fit each other: numbers of modules, widths, patches, image sizes, classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modnet.errors import RequestError
from modnet.recipe.document import Document
from modnet.recipe.problems import Path
from modnet.recipe.references import Named, resolve_suite
from modnet.recipe.sources import Source
from modnet.recipe.stages import (
    Assemble,
    Distill,
    Evaluate,
    Features,
    Incubate,
    M2mkd,
    Stage,
    Train,
    TrainingStage,
)
from modnet.registry import DATA, Params

TIMM_MODULES = 4  # what the timm adapter cuts a network into where `depths` is left out


def network_of(name: str, recipe: Named) -> str | None:
    """The model whose modules a model or stage name stands for; None where the recipe is broken."""
    if name in recipe.models:
        return name
    stage = recipe.stages.get(name)
    if isinstance(stage, Train):
        return stage.model or (network_of(stage.from_, recipe) if stage.from_ else None)
    if isinstance(stage, Assemble):
        return network_of(stage.from_, recipe)
    if isinstance(stage, Incubate):
        return stage.model
    return stage.student if isinstance(stage, Distill) else None


@dataclass(frozen=True)
class Role:
    """A network in a stage, by the key that names it, with what is known of its shape without building it."""

    key: str
    model: str
    params: Params

    @property
    def modules(self) -> int | None:
        depths = getattr(self.params, "depths", None)
        timm = str(getattr(self.params, "name", "")).startswith("timm:")
        return len(depths) if depths else TIMM_MODULES if timm else None

    def get(self, field: str) -> Any:
        return getattr(self.params, field, None)


@dataclass
class Checker:
    """The checks of one stage; what it finds is noted in the document."""

    document: Document
    recipe: Named
    name: str

    def role(self, key: str, name: str | None) -> Role | None:
        model = network_of(name, self.recipe) if name else None
        return Role(key, model, self.recipe.models[model]) if model in self.recipe.models and model else None

    def say(self, path: Path, message: str, *, key: bool = False) -> None:
        where = ("stages", self.name, *path)
        self.document.complain(where, message, key=key, quote=not key)

    def equal(
        self,
        first: Role | None,
        second: Role | None,
        what: str,
        of: Callable[[Role], Any],
        mend: str,
    ) -> None:
        """Note a difference between two networks, at the key of the first."""
        if first is None or second is None:
            return
        a, b = of(first), of(second)
        if a is not None and b is not None and a != b:
            said = f"{what}: {first.key} ({first.model}) has {a}, {second.key} ({second.model}) has {b}; {mend}"
            self.say((first.key,), said)

    def same_modules(self, first: Role | None, second: Role | None) -> None:
        mend = "give their `depths` equally many entries"
        self.equal(first, second, "numbers of modules must be equal", lambda r: r.modules, mend)

    def same_width(self, first: Role | None, second: Role | None, why: str) -> None:
        self.equal(
            first,
            second,
            f"widths must be equal, as {why}",
            lambda r: r.get("width"),
            "change one `width`",
        )

    def same_tokens(self, first: Role | None, second: Role | None) -> None:
        for field, what in (
            ("patch", "token grids must be equal"),
            ("pool", "class tokens must agree"),
        ):
            mend = f"give both the same `{field}`"
            self.equal(first, second, what + f" ({field})", lambda r, f=field: r.get(f), mend)  # type: ignore[misc]


def check_stage(document: Document, recipe: Named, name: str, stage: Stage) -> None:
    """Note everything in a stage whose references are right that still cannot work."""
    checker = Checker(document, recipe, name)
    if isinstance(stage, Train):
        _train(checker, stage)
    elif isinstance(stage, Incubate):
        _incubate(checker, stage)
    elif isinstance(stage, Distill):
        _distill(checker, stage)
    elif isinstance(stage, Evaluate):
        _evaluate(checker, stage)
    if isinstance(stage, TrainingStage):
        _patch_fits(checker, stage)
        if stage.accumulate > stage.batch:
            checker.say(
                ("accumulate",),
                f"a batch of {stage.batch} cannot be divided into {stage.accumulate} parts",
            )


def _train(checker: Checker, stage: Train) -> None:
    if stage.model and stage.from_:
        message = "give `model` to train from scratch or `from` to go on from a stage, not both"
        checker.say(("from",), message)
    elif not (stage.model or stage.from_):
        checker.say((), "needs `model: NAME` (from scratch) or `from: STAGE` (going on)", key=True)


def _incubate(checker: Checker, stage: Incubate) -> None:
    model, meta = checker.role("model", stage.model), checker.role("meta", stage.meta)
    checker.same_modules(model, meta)
    checker.same_width(model, meta, "each module takes the place of a meta module")
    checker.same_tokens(model, meta)


def _distill(checker: Checker, stage: Distill) -> None:
    student, teacher = (
        checker.role("student", stage.student),
        checker.role("teacher", stage.teacher),
    )
    if isinstance(stage, M2mkd):
        meta = checker.role("meta", stage.meta)
        checker.same_modules(student, meta)
        checker.same_modules(teacher, meta)
        checker.same_width(teacher, meta, "each teacher module takes the place of a meta module")
        checker.same_tokens(student, meta)
        checker.same_tokens(teacher, meta)
        if stage.stitch == "identity":
            checker.same_width(student, meta, "`stitch: identity` changes no width")
    if isinstance(stage, Features):
        checker.same_modules(student, teacher)
        checker.same_tokens(student, teacher)
        if stage.stitch == "identity":
            checker.same_width(student, teacher, "`stitch: identity` changes no width")


def _facts(source: Source) -> dict[str, Any]:
    """What is known of a source without loading it: its entry's facts, and what its parameters say."""
    stated = {key: getattr(source, key) for key in ("size", "channels") if hasattr(source, key)}
    return {**DATA.get(source.name).facts, **stated}


def _patch_fits(checker: Checker, stage: TrainingStage) -> None:
    source = checker.recipe.data.get(stage.data)
    size = _facts(source).get("size") if source else None
    for key in ("model", "student"):
        role = checker.role(key, getattr(stage, key, None))
        patch = role.get("patch") if role else None
        if size and patch and size % patch and role:
            fits = [p for p in range(2, size // 2 + 1) if size % p == 0]
            message = f"patch {patch} of model {role.model} does not divide {stage.data}'s images of {size} pixels"
            checker.say((key,), f"{message}; patches that do: {', '.join(map(str, fits))}")


def _evaluate(checker: Checker, stage: Evaluate) -> None:
    """Channels and classes of every test set must be those that the networks were trained for."""
    for i, suite in enumerate(stage.on):
        try:
            source, _ = resolve_suite(suite, checker.recipe)
        except RequestError:  # noted among the references
            continue
        wanted = _facts(source)
        for of in stage.of:
            trained = checker.recipe.stages.get(of)
            data = checker.recipe.data.get(getattr(trained, "data", ""))
            known = _facts(data) if data else {}
            for fact in ("channels", "classes"):
                if {fact} <= wanted.keys() & known.keys() and wanted[fact] != known[fact]:
                    said = f"has {wanted[fact]} {fact}, but {of} was trained on {known[fact]}"
                    checker.say(("on", i), f"{said}; evaluate on images of its own kind")
