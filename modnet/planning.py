"""What a recipe would do and cost, known before anything is trained: no data is read, no weights are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from modnet.chain import Port
from modnet.errors import UserError
from modnet.evaluation.cost import cost, published_macs
from modnet.evaluation.hardware import Speed, described, measured
from modnet.experiment import DEFAULT_RUNS, Session, open_session, pick_device
from modnet.methods.base import NETWORK
from modnet.methods.costs import ancestors, lineage
from modnet.methods.planned import PlannedInputs, StagePlan, model_of, plan_stage, planned_inputs
from modnet.recipe import Recipe, inputs_of
from modnet.recipe.stages import Evaluate, Stage, Train, TrainingStage
from modnet.store import Store

HERE = "here"
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Rows of three tables, the speed that times are estimated for, and what could not be known."""

    stages: list[Row]
    models: list[Row]
    networks: list[Row]
    speed: Speed | None = None
    notes: tuple[str, ...] = ()


def plan(recipe: Recipe, *, runs: Path = DEFAULT_RUNS, hardware: str | None = None) -> Plan:
    """Plan every stage of a recipe.

    ``stages``: parameters that learn and that are frozen, bytes of weights (with gradients), of activations of one
    micro-batch and of the optimizer in float32, and training FLOPs with frozen passes. ``models``: parameters and
    multiply-adds of one image, as modnet counts and as published tables do. ``networks``: FLOPs of all that each
    evaluated network stands on, and their share of the end-to-end training of the same model in this recipe.
    ``hardware``: a device, a speed or ``here``, for estimated times. Raises RequestError.
    """
    speed = None if hardware is None else _speed(recipe, hardware)
    inputs = planned_inputs(recipe, Store(runs / "store"))
    plans = {name: plan_stage(name, s, inputs) for name, s in recipe.stages.items() if isinstance(s, TrainingStage)}
    states, notes = _states(recipe, runs)
    stages = [_stage_row(recipe, name, plans.get(name), states, speed) for name in recipe.stages]
    networks = [_network_row(recipe, name, plans, speed) for name in _evaluated(recipe)]
    return Plan(stages, _models(recipe, inputs), networks, speed, notes)


def _speed(recipe: Recipe, hardware: str) -> Speed:
    if hardware != HERE:
        return described(hardware)
    widths = [width for model in recipe.models.values() if isinstance(width := getattr(model, "width", None), int)]
    return measured(max(widths, default=768), pick_device(None))


def _states(recipe: Recipe, runs: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Whether each stage is done; without its data a recipe has no keys by which that could be told."""
    try:
        session: Session = open_session(recipe, runs, Console(quiet=True))
    except UserError as error:
        return dict.fromkeys(recipe.stages, "no data"), (str(error),)
    done = {name: session.store.is_done(session.keys[name]) for name in recipe.stages}
    return {name: "done" if ready else "to do" for name, ready in done.items()}, ()


def _stage_row(
    recipe: Recipe, name: str, planned: StagePlan | None, states: Mapping[str, str], speed: Speed | None
) -> Row:
    stage = recipe.stages[name]
    reads = " ".join(inputs_of(stage, recipe))
    row: Row = {"stage": name, "verb": stage.run, "state": states[name], "reads": reads}
    if planned is None:
        return row
    learns = list(planned.learns.values())
    return row | {
        "epochs": getattr(stage, "epochs", None),
        "learns": learns,
        "parts": planned.learns,
        "frozen": planned.frozen,
        "weights": planned.weights,
        "activations": planned.activations,
        "optimizer": planned.optimizer,
        "flops": _flops(planned),
        **({} if speed is None else {"seconds": _seconds(stage, planned, speed)}),
    }


def _flops(planned: StagePlan) -> float:
    return sum(planned.flops.values()) * planned.images


def _seconds(stage: Stage, planned: StagePlan, speed: Speed) -> float:
    return speed.seconds(_flops(planned), getattr(stage, "dtype", "fp32"))


def _evaluated(recipe: Recipe) -> list[str]:
    named = [of for stage in recipe.stages.values() if isinstance(stage, Evaluate) for of in stage.of]
    return list(dict.fromkeys(named))


def _network_row(recipe: Recipe, name: str, plans: Mapping[str, StagePlan], speed: Speed | None) -> Row:
    """FLOPs told three ways, as results tell them, and the share of end-to-end training of the same model."""
    own, every = lineage(name, recipe), ancestors(name, recipe)
    student = sum(plans[s].flops["student"] * plans[s].images for s in own if s in plans)
    passes = sum(plans[s].flops["passes"] * plans[s].images for s in own if s in plans)
    whole = sum(_flops(plans[s]) for s in every if s in plans)
    row: Row = {"network": name, "student": student, "with passes": student + passes, "with all": whole}
    baseline = _end_to_end(recipe, name)
    if baseline is not None and baseline != name:
        alone = sum(_flops(plans[s]) for s in lineage(baseline, recipe))
        row["share"] = f"{whole / alone:.2f} of {baseline}" if alone else None
    if speed is not None:
        row["seconds"] = sum(_seconds(recipe.stages[s], plans[s], speed) for s in every if s in plans)
    return row


def _end_to_end(recipe: Recipe, name: str) -> str | None:
    """The longest stage that trains the same model whole and from scratch."""
    model = model_of(recipe, name)
    whole = [s for s, stage in recipe.stages.items() if isinstance(stage, Train) and model_of(recipe, s) == model]
    alone = [s for s in whole if all(isinstance(recipe.stages[a], Train) for a in lineage(s, recipe))]
    return max(alone, key=lambda s: getattr(recipe.stages[s], "epochs", 0), default=None)


def _shown(port: Port) -> str:
    return f"{port['length']} bytes" if port.kind == "ids" else f"{port['size']} px"


def _models(recipe: Recipe, inputs: PlannedInputs) -> list[Row]:
    """Every model as it is built for the data of a stage; one of several sizes, once for each."""
    rows: dict[tuple[str, str], Row] = {}
    for name, stage in recipe.stages.items():
        model = model_of(recipe, name)
        if not isinstance(stage, TrainingStage) or model is None or NETWORK not in inputs.left[name]:
            continue
        port = inputs.dataset(stage.data).port
        chain = inputs.left[name][NETWORK]
        with torch.device("meta"):
            counted, published = cost(chain, port), published_macs(chain, port)
        row = {"model": model, "inputs": _shown(port), "parameters": counted.parameters, "MACs": counted.macs}
        rows.setdefault((model, str(counted)), row | {"with norms": published})
    return list(rows.values())
