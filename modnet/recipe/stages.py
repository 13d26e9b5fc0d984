"""Typed stages: what each verb takes. References to models, data and stages are names, checked by the schema."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

import importlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
)

from modnet.recipe.fields import Choice, Gives, KeyedIfSet, NoDefault, Ref, Unkeyed
from modnet.recipe.training import BelowOne, Fraction, Muon, Schedule
from modnet.registry import AUGMENTS, OPTIMIZERS, SCHEDULES, VERBS, Params, UnknownName

DataRef = Annotated[str, Ref("data")]
ModelRef = Annotated[str, Ref("model")]
NetworkRef = Annotated[str, Ref("stage", "model", gives="network")]  # trained, or a model that brings its weights
WholeStageRef = Annotated[str, Ref("stage", gives="network")]
ModulesRef = Annotated[str, Ref("stage", gives="modules")]
SuiteRef = Annotated[str, Ref("data", "suite")]


class Replaying(Params):
    """Outputs of frozen networks are computed once, stored, and read by every later student, seed and ablation.

    In short ``replay: fp32``. ``top-k`` stores the ``k`` largest log-probabilities; what is left is spread evenly.
    """

    store: Literal["fp32", "fp16", "top-k"] = "fp32"
    k: PositiveInt = 10
    prefix: bool = False  # the features that enter the modules as well: much larger than logits

    @property
    def exact(self) -> bool:
        """Whether a stage gives the same weights as with live networks, so that its key is the same as well."""
        return self.store == "fp32"


def _replaying(value: Any) -> Any:
    return {"store": value} if isinstance(value, str) else value


Replay = Annotated[Replaying | None, BeforeValidator(_replaying), KeyedIfSet()]

Degree = PositiveInt | Literal["all"]


class Parallel(Params):
    """How several processes share a whole network; numbers of processes, ``all`` for as many as there are.

    ``data`` times ``fsdp`` is the number of processes. Experts are dealt to ``experts`` of these same processes, as in
    torchtitan and DeepSpeed. One process does everything itself, whatever stands here.
    """

    data: PositiveInt | None = None  # copies of the network; None: as many as fsdp leaves
    fsdp: Degree = 1  # processes over which parameters, gradients and optimizer state are sharded (FSDP2)
    experts: Degree = 1  # processes to which the experts of every layer are dealt


class Whole(Params):
    """What stages have that train a whole network."""

    parallel: Annotated[Parallel, Unkeyed()] = Field(default_factory=Parallel)


# Modules trained at once: true (all that fit the memory), a number at most, or false (one by one); the same weights.
Fused = Annotated[bool | PositiveInt, Unkeyed()]

# A bare name (`muon`) or a mapping (`{name: muon, lr: 0.02}`), read through the registry.
Optimizer = Annotated[SerializeAsAny[Params], BeforeValidator(OPTIMIZERS.read), Choice(OPTIMIZERS)]
LearningRate = Annotated[SerializeAsAny[Params], BeforeValidator(SCHEDULES.read), Choice(SCHEDULES)]
Augment = Annotated[SerializeAsAny[Params], BeforeValidator(AUGMENTS.read), Choice(AUGMENTS)]


class Mismatch(Params):
    """What happens where a network meets data of another kind than it was trained on."""

    head: Literal["fresh", "keep"] = "fresh"
    position: Literal["resize", "fresh"] = "resize"


class Stage(Params):
    """What every stage has."""

    gives: ClassVar[Gives] = "nothing"  # what a stage that names this one receives

    run: str
    seed: int | None = None  # None: the recipe's


class TrainingStage(Stage):
    """What every stage that trains has; ``defaults`` of the recipe fill what a stage leaves out."""

    data: DataRef
    epochs: NonNegativeInt = 1
    batch: PositiveInt = 128  # images in one optimizer step, over all ranks and micro-batches
    accumulate: PositiveInt = 1  # micro-batches that a batch is divided into
    optimizer: Optimizer = Field(default_factory=Muon)
    schedule: LearningRate = Field(default_factory=Schedule)
    augment: tuple[Augment, ...] = ()
    repeats: Annotated[PositiveInt, KeyedIfSet()] = 1  # copies of an image in a batch, each augmented for itself
    label_smoothing: BelowOne = 0.0
    drop_path: BelowOne | None = None  # None: the model's own
    clip: PositiveFloat | None = None  # largest gradient norm of a track
    ema: BelowOne | None = None  # decay of the averaged weights, which then are what is evaluated and kept
    dtype: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 if a short trial finds it clearly faster
    compile: bool | Literal["auto"] = False  # auto: if a short trial finds that over the whole stage it pays
    select: Literal["best", "last"] = "best"  # which checkpoint the stage gives on, by val accuracy
    evaluate_every: PositiveInt = 1  # epochs
    data_seed: Annotated[int | None, KeyedIfSet()] = None  # of order and augmentation; None: the stage's own seed
    checkpoint_every: Annotated[PositiveInt | None, Unkeyed()] = None  # steps; None: every epoch and every minute


class Train(TrainingStage, Whole):
    """Train a network end to end with labels, from scratch or from an earlier stage."""

    gives: ClassVar[Gives] = "network"
    run: Literal["train"] = "train"
    model: ModelRef | None = None
    from_: WholeStageRef | None = Field(None, alias="from")  # go on from its last checkpoint, optimizer included
    on_mismatch: Mismatch = Field(default_factory=Mismatch)
    tune: Literal["all", "head"] = "all"  # what learns; head: the last leaf alone, all before it frozen (linear probe)


class Incubate(TrainingStage):
    """Deep Incubation: train each module of ``model`` alone inside a frozen meta network (Ni et al. 2022)."""

    gives: ClassVar[Gives] = "modules"
    run: Literal["incubate"] = "incubate"
    model: ModelRef
    meta: WholeStageRef
    hint: NonNegativeFloat = 0.0  # weight of the distance to the meta module's own output; 0: as published
    fused: Fused = True
    replay: Replay = None


Stitch = Literal["linear", "ln-linear", "identity"]
Norm = Literal["numel", "batchmean"]


class Distill(TrainingStage):
    """Distil a teacher into a student: m2mkd, kd (whole networks), features, or align (a meta for m2mkd)."""

    run: Literal["distill"] = "distill"
    method: Literal["m2mkd", "kd", "features", "align"]
    student: ModelRef
    teacher: NetworkRef
    replay: Replay = None


class M2mkd(Distill):
    """Module-to-module distillation through a shared frozen meta network (Lo et al. 2024)."""

    gives: ClassVar[Gives] = "modules"
    method: Literal["m2mkd"] = "m2mkd"
    meta: WholeStageRef
    alpha: Fraction = 0.5  # weight of the teacher's term
    tau: PositiveFloat = 1.0
    kind: Literal["soft", "hard"] = "soft"
    kd_norm: Norm = "numel"
    hint: NonNegativeFloat = 0.0  # weight of the distance to the teacher module's own output; 0: logits alone
    stitch: Stitch = "ln-linear"
    fused: Fused = True


class Logits(Params):
    """How a whole network learns from a teacher's logits beside the labels (Hinton et al. 2015)."""

    alpha: Fraction = 0.9  # weight of the teacher's term
    tau: PositiveFloat = 2.0
    kind: Literal["soft", "hard"] = "soft"
    kd_norm: Norm = "batchmean"


class HintonKD(Distill, Logits, Whole):
    """Distillation of a whole network from a whole network (Hinton et al. 2015)."""

    gives: ClassVar[Gives] = "network"
    method: Literal["kd"] = "kd"


class Features(Distill):
    """Feature m2m: student module i gets the teacher's input of module i and must give the teacher's output of it."""

    gives: ClassVar[Gives] = "modules"
    method: Literal["features"] = "features"
    stitch: Stitch = "linear"
    alpha: Fraction = 0.9  # of the last module's loss: weight of the teacher's term against the labels
    tau: PositiveFloat = 2.0
    kd_norm: Norm = "batchmean"
    beta: PositiveFloat = 1.0  # where smooth L1 turns linear
    fused: Fused = True


class Align(Distill):
    """Block-wise distillation of a meta network whose modules and the teacher's can stand in each other's place."""

    gives: ClassVar[Gives] = "network"
    method: Literal["align"] = "align"
    mix: Fraction = 0.5  # of the inputs of each module: the share that the student's own modules before it give
    alpha: Fraction = 0.9  # of the last module's loss: weight of the teacher's term against the labels
    tau: PositiveFloat = 2.0
    kd_norm: Norm = "batchmean"


class Teaching(Logits):
    """A teacher's logits beside the labels, while a network is fine-tuned."""

    teacher: NetworkRef


class Assemble(TrainingStage, Whole):
    """Join the modules of an incubation or distillation into one network, then fine-tune it end to end."""

    gives: ClassVar[Gives] = "network"
    run: Literal["assemble"] = "assemble"
    from_: ModulesRef = Field(alias="from")
    model: Annotated[ModelRef | None, KeyedIfSet()] = None  # what the modules are loaded into; None: what they are of
    epochs: NonNegativeInt = 0
    stitches: Literal["auto", "drop", "keep", "fold"] = "auto"  # auto: fold where they fold, else drop
    kd: Teaching | None = None
    replay: Replay = None


class Route(TrainingStage):
    """Routing between modules or networks, by its method."""

    gives: ClassVar[Gives] = "network"
    run: Literal["route"] = "route"
    method: str


class FewShot(Params):
    """Adapting a network to classes that it never saw, from a few images of each, over many episodes.

    An episode draws ``ways`` classes of ``data``, trains on ``shots`` images of each and is measured on three times as
    many others, of the test set (Lo et al. 2024, and the reference's 8 ways, 5 shots, 100 epochs at 2e-3).
    """

    data: DataRef
    ways: Annotated[int, Field(ge=2)] = 8
    shots: PositiveInt = 5
    episodes: Annotated[int, Field(ge=2)] = 20
    tune: Literal["head", "all"] = "head"  # head: a new classifier on frozen features
    epochs: PositiveInt = 100
    lr: PositiveFloat = 2e-3  # of AdamW, falling by a cosine; not scaled by the batch
    quirk_overlap: bool = False  # the reference's measure: on training images, a third of them those it trained on


class Evaluate(Stage):
    """Measure finished stages on test sets and shift suites, which no other stage reads."""

    gives: ClassVar[Gives] = "table"
    run: Literal["evaluate"] = "evaluate"
    of: Annotated[tuple[WholeStageRef, ...], Field(min_length=1)]
    on: Annotated[tuple[SuiteRef, ...], Field(min_length=1)]
    limit: PositiveInt | None = None  # of a shift suite's parts only the first so many images; test sets are read whole
    batch: Annotated[PositiveInt, NoDefault()] = 512  # images at once; training's `batch` is no default for it
    throughput: bool = True  # whether images a second are measured as well
    few_shot: FewShot | None = None


DISTILLERS: dict[str, type[Distill]] = {"m2mkd": M2mkd, "kd": HintonKD, "features": Features, "align": Align}
ROUTES = {  # imported when a recipe names one
    "upcycle": "modnet.recipe.routing:Upcycle",
    "split": "modnet.recipe.routing:Split",
    "confidence": "modnet.recipe.confidence:Confidence",
    "concentrate": "modnet.recipe.experts:Concentrate",
    "prune": "modnet.recipe.experts:Prune",
    "grow": "modnet.recipe.experts:Grow",
    "lora": "modnet.recipe.lora:Lora",
}

VERBS.register("train", Train, "modnet.methods.supervised:Supervised")
VERBS.register("incubate", Incubate, "modnet.methods.incubation:Incubation")
VERBS.register("assemble", Assemble, "modnet.methods.assembly:Assembly")
VERBS.register("distill", Distill, "modnet.methods.distillation:method")
VERBS.register("route", Route, "modnet.methods.routing:routing")
VERBS.register("evaluate", Evaluate, "modnet.methods.evaluation:Evaluation")


def stage_class(values: dict[str, Any]) -> type[Stage]:
    """The typed class of a stage written as a mapping; raises UnknownName for a verb or method that is not there."""
    entry = VERBS.get(str(values.get("run")))
    if entry.params is Route:
        return route_class(str(values.get("method")))
    if entry.params is not Distill:
        return entry.params  # type: ignore[return-value]
    method = values.get("method", "m2mkd")
    if method not in DISTILLERS:
        raise UnknownName("distillation method", str(method), list(DISTILLERS))
    return DISTILLERS[method]


def route_class(method: str) -> type[Route]:
    """The typed class of a routing method; raises UnknownName."""
    if method not in ROUTES:
        raise UnknownName("routing method", method, list(ROUTES))
    module, _, name = ROUTES[method].partition(":")
    found: type[Route] = getattr(importlib.import_module(module), name)
    return found
