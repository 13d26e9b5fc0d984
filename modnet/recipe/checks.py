"""Whether the parts of a recipe fit each other: numbers of modules, widths, patches, image sizes, classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modnet.errors import RequestError
from modnet.recipe.document import Document
from modnet.recipe.models import TIMM_MODULES, Timm, ViT, VMoE
from modnet.recipe.problems import Path
from modnet.recipe.references import Named, resolve_suite
from modnet.recipe.routers import places
from modnet.recipe.routing import Converted, Split
from modnet.recipe.sources import facts_of
from modnet.recipe.stages import (
    Align,
    Assemble,
    Distill,
    Evaluate,
    Features,
    FewShot,
    Incubate,
    M2mkd,
    Route,
    Stage,
    Train,
    TrainingStage,
)
from modnet.registry import MODELS, Params

IMAGES = {"size": "pixels", "channels": "channels", "classes": "classes"}  # what a network is built for, by fact


def network_of(name: str, recipe: Named) -> str | None:
    """The model whose modules a model or stage name stands for; None where the recipe is broken."""
    if name in recipe.models:
        return name
    stage = recipe.stages.get(name)
    if isinstance(stage, Train):
        return stage.model or (network_of(stage.from_, recipe) if stage.from_ else None)
    if isinstance(stage, Assemble):
        return stage.model or network_of(stage.from_, recipe)
    if isinstance(stage, Incubate):
        return stage.model
    if isinstance(stage, Route):
        earlier = getattr(stage, "from_", None)
        return network_of(earlier, recipe) if earlier else None
    return stage.student if isinstance(stage, Distill) else None


@dataclass(frozen=True)
class Role:
    """A network in a stage, by the key that names it, with what is known of its shape without building it."""

    key: str
    model: str
    params: Params

    @property
    def modules(self) -> int | None:
        depths, own = getattr(self.params, "depths", None), getattr(self.params, "modules", None)
        if isinstance(own, int):
            return own
        return len(depths) if depths else TIMM_MODULES if isinstance(self.params, Timm) else None

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

    def equal(self, first: Role | None, second: Role | None, what: str, of: Callable[[Role], Any], mend: str) -> None:
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
        what = f"widths must be equal, as {why}"
        self.equal(first, second, what, lambda r: r.get("width"), "change one `width`")

    def same_tokens(self, first: Role | None, second: Role | None) -> None:
        for field, what in (("patch", "token grids must be equal"), ("pool", "class tokens must agree")):
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
    elif isinstance(stage, Assemble):
        _assemble(checker, stage)
    elif isinstance(stage, Evaluate):
        _evaluate(checker, stage)
    elif isinstance(stage, Converted):
        _converted(checker, stage)
    if isinstance(stage, TrainingStage):
        _patch_fits(checker, stage)
        _same_images(checker, stage)
        if stage.accumulate > stage.batch:
            message = f"a batch of {stage.batch} cannot be divided into {stage.accumulate} parts"
            checker.say(("accumulate",), message)


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
    student, teacher = checker.role("student", stage.student), checker.role("teacher", stage.teacher)
    if isinstance(stage, M2mkd):
        meta = checker.role("meta", stage.meta)
        checker.same_modules(student, meta)
        checker.same_modules(teacher, meta)
        checker.same_width(teacher, meta, "each teacher module takes the place of a meta module")
        checker.same_tokens(teacher, meta)
        if stage.stitch == "identity":
            checker.same_width(student, meta, "`stitch: identity` changes no width")
    if isinstance(stage, Align):
        checker.same_modules(student, teacher)
        checker.same_width(student, teacher, "each teacher module takes the place of a meta module")
        checker.same_tokens(student, teacher)
    if isinstance(stage, Features):
        checker.same_modules(student, teacher)
        if stage.stitch == "identity":
            checker.same_width(student, teacher, "`stitch: identity` changes no width")


def _assemble(checker: Checker, stage: Assemble) -> None:
    """Stitches fold only where there are some and no norm lies between two; modules go into their own family."""
    source = checker.recipe.stages[stage.from_]
    into, taught = checker.role("model", stage.model), checker.role("from", stage.from_)
    checker.equal(into, taught, "modules are loaded into a model of their own family", _family, "change `model`")
    if stage.stitches != "fold":
        return
    if isinstance(source, Incubate):
        message = f"{stage.from_} is an incubation, whose modules have no stitches; leave `stitches` out"
        checker.say(("stitches",), message)
    elif getattr(source, "stitch", "") == "ln-linear":
        why = f"{stage.from_} has stitch: ln-linear, of which two do not fold, as a LayerNorm lies between them"
        checker.say(("stitches",), f"{why}; set its `stitch: linear`, or here `stitches: drop` or `keep`")


def _family(role: Role) -> str:
    return MODELS.get(str(role.params.name)).base  # type: ignore[attr-defined]


def _converted(checker: Checker, stage: Converted) -> None:
    """The network has dense blocks of our own at these places, and hidden units that divide into the experts."""
    role = checker.role("from", stage.from_)
    if role is None:
        return
    if isinstance(stage, Split) and stage.part == "attention":
        _heads(checker, stage, role)
        return
    if not isinstance(role.params, ViT) or isinstance(role.params, VMoE):
        checker.say(("from",), f"is a {role.get('name')} ({role.model}); experts take the place of a vit's MLPs")
        return
    _placed(checker, stage, role.params)
    hidden = int(role.params.width * role.params.mlp_ratio)
    parts, key = (
        (stage.experts, "experts") if isinstance(stage, Split) else (getattr(stage, "fragments", 1), "fragments")
    )
    if hidden % parts:
        checker.say((key,), f"{hidden} hidden units of {role.model}'s MLPs do not divide into {parts} equal parts")


def _placed(checker: Checker, stage: Converted, params: ViT) -> None:
    """The network has the blocks that are to hold experts."""
    try:
        places(stage.placement, sum(params.depths))
    except ValueError as error:
        checker.say(("placement",), str(error))


def _heads(checker: Checker, stage: Split, role: Role) -> None:
    """The network has blocks of our own at these places, and its heads divide into the experts, if it tells them."""
    if not isinstance(role.params, ViT):
        checker.say(("from",), f"is a {role.get('name')} ({role.model}); part: attention splits the heads of a vit")
        return
    _placed(checker, stage, role.params)
    heads = role.params.heads
    if heads and heads % stage.experts:
        checker.say(("experts",), f"{heads} heads of {role.model} do not divide into {stage.experts} experts")


def _patch_fits(checker: Checker, stage: TrainingStage) -> None:
    source = checker.recipe.data.get(stage.data)
    size = facts_of(source).get("size") if source else None
    for key in ("model", "student"):
        role = checker.role(key, getattr(stage, key, None))
        patch = role.get("patch") if role else None
        if size and patch and size % patch and role:
            fits = [p for p in range(2, size // 2 + 1) if size % p == 0]
            message = f"patch {patch} of model {role.model} does not divide {stage.data}'s images of {size} pixels"
            checker.say((key,), f"{message}; patches that do: {', '.join(map(str, fits))}")


def _same_images(checker: Checker, stage: TrainingStage) -> None:
    """The networks that a stage reads must be built for its own images; only `run: train` adapts one to others."""
    kd = stage.kd if isinstance(stage, Assemble) else None
    read = {
        ("teacher",): getattr(stage, "teacher", None),
        ("meta",): getattr(stage, "meta", None),
        ("from",): stage.from_ if isinstance(stage, Assemble | Converted) else None,
        ("kd", "teacher"): kd.teacher if kd else None,
    }
    own = checker.recipe.data.get(stage.data)
    taught = checker.role("from", read[("from",)])
    if taught and MODELS.get(str(taught.params.name)).facts.get("takes_other_images"):  # type: ignore[attr-defined]
        del read[("from",)]  # its transplant leaves behind what belongs to other images
    for path, name in read.items():
        for fact, theirs, ours in _differing(_trained_on(checker, name), facts_of(own) if own else {}):
            said = f"was trained on images of {theirs} {fact}, but {stage.data}, this stage's data, has {ours}"
            checker.say(path, f"{said}; train both on images of one kind")


def _trained_on(checker: Checker, name: str | None) -> dict[str, Any]:
    """What is known of the images that a stage trains on; of a model nothing, as it is built for whoever reads it."""
    data = getattr(checker.recipe.stages.get(name or ""), "data", "")
    return facts_of(checker.recipe.data[data]) if data in checker.recipe.data else {}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The facts known of both that differ, in words, with both values."""
    for fact, words in IMAGES.items():
        if fact in first and fact in second and first[fact] != second[fact]:
            yield words, first[fact], second[fact]


def _evaluate(checker: Checker, stage: Evaluate) -> None:
    """Each network and test set once; the images of every test set must be those that the networks were built for."""
    for key, names in (("of", stage.of), ("on", stage.on)):
        for i, name in enumerate(names):
            if name in names[:i]:
                checker.say((key, i), f"is named twice in `{key}`; name it once")
    for i, suite in enumerate(stage.on):
        try:
            source, _ = resolve_suite(suite, checker.recipe)
        except RequestError:  # noted among the references
            continue
        for of in dict.fromkeys(stage.of):
            for fact, wanted, known in _differing(facts_of(source), _trained_on(checker, of)):
                said = f"has {wanted} {fact}, but {of} was trained on {known}"
                checker.say(("on", i), f"{said}; evaluate on images of its own kind")
    if stage.few_shot is not None:
        _few_shot(checker, stage, stage.few_shot)


def _few_shot(checker: Checker, stage: Evaluate, few: FewShot) -> None:
    """Enough classes for an episode, and images of the size and channels that the networks were built for."""
    facts = facts_of(checker.recipe.data[few.data]) if few.data in checker.recipe.data else {}
    if few.ways > facts.get("classes", few.ways):
        checker.say(("few_shot", "ways"), f"{few.data} has only {facts['classes']} classes")
    images = {key: value for key, value in facts.items() if key != "classes"}
    for of in dict.fromkeys(stage.of):
        for fact, wanted, known in _differing(images, _trained_on(checker, of)):
            said = f"has {wanted} {fact}, but {of} was trained on {known}; adapt to images of its own kind"
            checker.say(("few_shot", "data"), said)
