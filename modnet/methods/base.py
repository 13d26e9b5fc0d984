"""What every method shares: the inputs of a stage, and the shape of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modnet.chain import Chain
from modnet.data import Dataset, load
from modnet.data.files import data_home
from modnet.data.loaders import TrainBatches
from modnet.engine.artifacts import load_chain
from modnet.engine.batch import Batches
from modnet.engine.choices import Choice, remember
from modnet.engine.job import Job, Metrics, Track
from modnet.engine.ranks import ALONE, World
from modnet.engine.replay import Replay
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.interop import published
from modnet.layers.adapters import see
from modnet.layers.drop_path import set_drop_path
from modnet.methods.replaying import Filler, ReplayedBatches
from modnet.randomness import Key
from modnet.recipe import Recipe
from modnet.recipe.models import Timm, Weighted
from modnet.recipe.stages import TrainingStage
from modnet.registry import MODELS, Params
from modnet.store import Store
from modnet.surgery.bridging import width_of
from modnet.surgery.stitching import stitched
from modnet.surgery.transplant import Family, family_of

NETWORK, BEFORE = "network", "before"


@dataclass
class Inputs:
    """Where a stage finds its models, data and earlier stages, by the names that its recipe gives them."""

    recipe: Recipe
    store: Store
    keys: Mapping[str, str]
    say: Callable[[str], None] = print
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    home: Path | None = None  # the folder of the stage that is running
    world: World = ALONE

    def chosen(self, name: str, make: Callable[[], Choice], told: str) -> Choice:
        """An automatic choice of the running stage: made once, told with its reason, stored and obeyed later.

        Of several processes the first makes it, and all call this in the same order.
        """
        if self.home is None:
            return make()
        made = remember(self.home, name, make) if self.world.team.leads else None
        agreed = self.world.team.told(made)
        assert agreed is not None
        choice, new = agreed
        if new:
            self.say(f"{told}: {str(choice.value).lower()} ({choice.reason})")
        return choice

    def key(self, stage: Any) -> Key:
        """The random key of a stage: its seed and verb, never its name."""
        return Key.of(self.seed(stage), stage.run)

    def seed(self, stage: Any) -> int:
        """The stage's own seed, or the recipe's."""
        return self.recipe.seed if stage.seed is None else int(stage.seed)

    def dataset(self, name: str) -> Dataset:
        """A data set of the recipe, loaded."""
        return load(self.recipe.data[name])

    def fresh(self, model: str, dataset: Dataset, key: Key) -> Chain:
        """A model of the recipe, built for a data set, with parameters drawn by the key."""
        return build(self.recipe.models[model], dataset, key.fold("init")).to(self.device)

    def family(self, model: str) -> Family:
        """How modules of a model's family are taught and moved."""
        return family_of(MODELS.get(str(self.recipe.models[model].name)).resolve())  # type: ignore[attr-defined]

    def drop_path(self, stage: Any, model: str) -> float:
        """The drop-path rate of a stage: its own, or that of its model."""
        rate = stage.drop_path if stage.drop_path is not None else getattr(self.recipe.models[model], "drop_path", 0.0)
        return float(rate)

    def val_top1(self, network: Chain, dataset: Dataset) -> float:
        """Top-1 of a network on val, in percent."""
        return measure(network, dataset.val, dataset).top1

    def folder(self, stage: str) -> Path:
        """The artifact folder of an earlier stage."""
        return self.store.folder(self.keys[stage])

    def network(self, name: str, dataset: Dataset, key: Key) -> Chain:
        """The trained network of an earlier stage, or a model that brings its own weights, for a data set's images.

        Raises RequestError for a model whose weights tell other classes apart: its classifier would be a random one.
        """
        if name in self.recipe.stages:
            return see(self.stored(name, NETWORK), dataset.mean, dataset.std)
        self._must_know(name, dataset)
        return self.fresh(name, dataset, key)

    def _must_know(self, model: str, dataset: Dataset) -> None:
        params = self.recipe.models[model]
        if not isinstance(params, Timm):
            return
        from modnet.models.timm_weights import taught_classes

        known, wanted = taught_classes(params), len(dataset.classes)
        if known is not None and known != wanted:
            raise RequestError(
                f"models.{model}: the weights of {params.name} tell {known} classes apart and the data has {wanted}: "
                f"its classifier would be a random one. Train it in a stage first ({{run: train, model: {model}, "
                "tune: head}, then all of it) and name that stage instead"
            )

    def modules(self, name: str) -> list[Chain]:
        """The modules that an incubation or distillation stage trained, in order."""
        manifest = self.store.result(self.keys[name])
        return [self.stored(name, module_name(i)) for i in range(int(manifest["modules"]))]

    def stored(self, stage: str, name: str) -> Chain:
        """A chain that an earlier stage left."""
        return load_chain(self.folder(stage), name).to(self.device)


def build(params: Params, dataset: Dataset, key: Key) -> Chain:
    """A model for the images and classes of a data set; all its random draws follow from the key.

    With ``weights`` of its own, it starts from that checkpoint; raises RequestError for one that does not fit.
    """
    with key.forked():
        builder = MODELS.get(str(params.name)).resolve()  # type: ignore[attr-defined]
        chain: Chain = builder(params, dataset.port, len(dataset.classes))
    if isinstance(params, Weighted) and params.weights is not None:
        published.load(chain, Path(params.weights))
    return see(chain, dataset.mean, dataset.std)


def module_name(index: int) -> str:
    """The name of a module's track, checkpoint and file."""
    return f"module{index}"


@dataclass
class Kept:
    """What a trained stage leaves in the store: chains by name, and facts for its result."""

    chains: dict[str, Chain]
    facts: dict[str, Any] = field(default_factory=dict)


class Method:
    """How one kind of stage learns: it gives jobs to the trainer and says what to keep; it never loops itself."""

    stage: TrainingStage
    _replay: Replay | None = None
    facts: dict[str, Any]  # for the stage's result, beside those of ``keep``

    def __init__(self, stage: Any, inputs: Inputs) -> None:
        self.stage, self.inputs, self.facts = stage, inputs, {}
        self.key = inputs.key(stage)
        self.dataset = inputs.dataset(stage.data)

    def jobs(self) -> list[Job]:
        """The training runs of this stage, in order; each resumes by itself. There may be none."""
        raise NotImplementedError

    def untrained(self) -> dict[str, Metrics]:
        """What the networks of a stage without jobs score on val, by track."""
        return {}

    def job_costs(self) -> list[float] | None:
        """What each job costs beside the others, by which jobs are dealt to processes; None: all share every job."""
        return None

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """What goes into the store once the jobs are done; ``metrics`` on val by track, of the weights selected."""
        raise NotImplementedError

    def flops(self) -> dict[str, float]:
        """Training FLOPs of one image: ``student`` (what learns, forward and backward), ``passes`` (frozen parts)."""
        raise NotImplementedError

    def job(self, name: str, objective: Any, tracks: list[Track], validate: Any, **extra: Any) -> Job:
        """A job on this stage's data and settings."""
        extra.setdefault("score", self.dataset.score)
        return Job(name, objective, tracks, self.batches(objective), self.stage, self.key, validate, **extra)

    def batches(self, objective: Any) -> Batches:
        """The stage's training batches; with ``replay`` they bring what the objective's frozen parts give."""
        stage, seed = self.stage, self.stage.data_seed
        key = self.key if seed is None else Key.of(seed, "data")
        batches = TrainBatches(self.dataset, stage.batch, key, stage.augment, self.inputs.device, stage.repeats)
        how = getattr(stage, "replay", None)
        if how is None:
            return batches
        if self._replay is None:
            filler = Filler(self.taught(objective), batches, stage, how, self.inputs.say, self.inputs.world.team)
            self._replay, facts = filler.ready(data_home() / "replays", self.key.fold("check"))
            self.facts |= facts
        return ReplayedBatches(batches, self._replay, objective.replayable(how.prefix))

    def taught(self, objective: Any) -> Any:
        """The objective whose frozen outputs are stored for all jobs of the stage."""
        return objective

    def track(self, name: str, chain: Chain) -> Track:
        """A track with this stage's optimizer, schedule, clip and EMA."""
        s = self.stage
        return Track(name, chain, s.optimizer, s.schedule, s.clip, s.ema)

    def with_drop_path(self, chain: Chain) -> Chain:
        """The chain, its blocks' drop path set by the stage if it asks for another than the model's."""
        if self.stage.drop_path is not None:
            set_drop_path(chain, self.stage.drop_path)
        return chain


def student_modules(stage: Any, inputs: Inputs, dataset: Dataset, host: Chain, key: Key) -> list[Chain]:
    """A fresh student's modules, each between stitches that fit the host's module in whose place it will learn.

    Stochastic depth starts at 0 in every module, as in the m2mKD reference.
    """
    network = inputs.fresh(stage.student, dataset, key)
    family, count = inputs.family(stage.student), same_count(student=network, host=host)
    with key.fold("students").forked():
        modules = [family.student(network, i, host_width(host, i)).to(inputs.device) for i in range(count)]
    for module in modules:
        set_drop_path(module, inputs.drop_path(stage, stage.student))
    with key.fold("stitches").forked():
        return [stitched(module, host, i, stage.stitch).to(inputs.device) for i, module in enumerate(modules)]


def host_width(host: Chain, i: int) -> int:
    """The width of the features around a host's module, 0 where none flow."""
    return width_of(host[i].takes) or width_of(host[i].gives)


def same_count(**networks: Chain) -> int:
    """The common number of modules; raises RequestError naming the networks whose numbers differ."""
    counts = {name: len(chain) for name, chain in networks.items()}
    if len(set(counts.values())) != 1:
        listing = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise RequestError(f"the networks must be cut into equally many modules, but {listing}; change their depths")
    return next(iter(counts.values()))
