"""Stages as they would be, on the meta device: the same methods build the same networks, without data or weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, Pass, describe, rebuild
from modnet.data import Dataset
from modnet.data.planned import planned
from modnet.engine.batch import Batch
from modnet.engine.job import Job
from modnet.engine.optimizers import state_numbers, trainable
from modnet.evaluation.cost import example
from modnet.evaluation.memory import activation_bytes, distinct
from modnet.methods.base import NETWORK, Inputs, Method, build, module_name
from modnet.randomness import Key
from modnet.recipe import Recipe
from modnet.recipe.stages import TrainingStage
from modnet.registry import VERBS, Params
from modnet.store import Store

FLOAT = 4  # bytes


@dataclass
class PlannedInputs(Inputs):
    """Inputs without content: data sets of the right size, fresh models without storage, stages as planned before."""

    left: dict[str, Mapping[str, Chain]] = field(default_factory=dict)

    def dataset(self, name: str) -> Dataset:
        return planned(self.recipe.data[name])

    def fresh(self, model: str, dataset: Dataset, key: Key) -> Chain:
        return build(without_weights(self.recipe.models[model]), dataset, key)

    def val_top1(self, network: Chain, dataset: Dataset) -> float:
        return float("nan")

    def modules(self, name: str) -> list[Chain]:
        return [self.stored(name, module_name(i)) for i in range(len(self.left[name]))]

    def stored(self, stage: str, name: str) -> Chain:
        return rebuild(describe(self.left[stage][name]))  # as it is loaded from the store: nothing in it is frozen


def planned_inputs(recipe: Recipe, store: Store) -> PlannedInputs:
    """Where planned stages find what they read; nothing is printed."""
    keys = dict.fromkeys(recipe.stages, "planned")
    return PlannedInputs(recipe, store, keys, lambda _: None, torch.device("meta"))


def without_weights(params: Params) -> Params:
    """A model's parameters, its weights left out: sizes need none."""
    none: dict[str, Any] = {"weights": None, "pretrained": False}
    return params.changed(**{name: value for name, value in none.items() if name in type(params).model_fields})


@dataclass(frozen=True)
class StagePlan:
    """What a training stage would be: parameters by part, bytes while it trains, and FLOPs from first to last step.

    ``learns``: trainable parameters by track. ``frozen``: what stands beside them without learning. ``activations`` are
    those of one micro-batch in float32; ``images`` all that pass, epochs included. ``flops``: as a run records them.
    """

    learns: dict[str, int]
    frozen: int
    activations: int
    optimizer: int
    images: int
    flops: dict[str, float]

    @property
    def weights(self) -> int:
        """Bytes of all weights and of the gradients of what learns."""
        learned = sum(self.learns.values())
        return FLOAT * (learned + self.frozen + learned)


def plan_stage(name: str, stage: TrainingStage, inputs: PlannedInputs) -> StagePlan:
    """Plan a stage, and keep in ``inputs`` the chains that it would leave; raises RequestError as its method does."""
    with torch.device("meta"):
        method: Method = VERBS.get(stage.run).resolve()(stage, inputs)
        jobs = method.jobs()
        inputs.left[name] = _left(method, jobs)
        tracks = [track for job in jobs for track in job.tracks]
        micro = -(-min(stage.batch, len(method.dataset.train)) // stage.accumulate)
        return StagePlan(
            learns={track.name: distinct(list(trainable(track.chain).values())) for track in tracks},
            frozen=max((_frozen(job) for job in jobs), default=0),
            activations=max((_activations(job, method.dataset, micro) for job in jobs), default=0),
            optimizer=max(map(_optimizer, jobs), default=0),
            images=stage.epochs * jobs[0].batches.steps_per_epoch * jobs[0].batches.batch_size if jobs else 0,
            flops=method.flops(),
        )


def _left(method: Any, jobs: list[Job]) -> dict[str, Chain]:
    """The chains that a stage would leave, by the names that it would give them."""
    modules = getattr(method, "learners", None)
    if modules is not None:
        return {module_name(i): module for i, module in enumerate(modules)}
    whole = getattr(method, "chain", None) or getattr(method, "meta", None) or jobs[0].tracks[0].chain
    return {NETWORK: whole}


def _frozen(job: Job) -> int:
    return distinct([p for p in job.objective.parameters() if not p.requires_grad])


def _optimizer(job: Job) -> int:
    """Bytes of the optimizers' state and of averaged weights, which tracks of one job keep side by side."""
    numbers = 0
    for track in job.tracks:
        averaged = distinct(list(trainable(track.chain).values())) if track.ema is not None else 0
        numbers += state_numbers(track.optimizer, track.chain) + averaged
    return FLOAT * numbers


def _activations(job: Job, dataset: Dataset, micro: int) -> int:
    def loss(count: int) -> Tensor:
        labels, ids = (t.new_zeros(count, *t.shape[1:]) for t in (dataset.train.labels, dataset.train.ids))
        target = torch.zeros(count, len(dataset.classes), device="meta") if labels.dim() == 1 else None  # as if mixed
        batch = Batch(example(dataset.port, count, "meta"), labels, ids, target)
        return torch.stack(list(job.objective(batch, Pass()).values())).sum()

    return activation_bytes(loss, job.objective.eval(), micro)


def model_of(recipe: Recipe, name: str) -> str | None:
    """The model that a stage trains, or whose modules it trains or joins."""
    stage: Any = recipe.stages[name]
    found = getattr(stage, "model", None) or getattr(stage, "student", None)
    earlier = getattr(stage, "from_", None)
    return found or (model_of(recipe, earlier) if earlier else None)
