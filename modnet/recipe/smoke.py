"""The smoke size of a recipe: every stage and method as they are, only smaller and shorter, each reduction told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import PositiveInt

from modnet.recipe.fields import Choice, marker
from modnet.recipe.problems import shown
from modnet.recipe.recipe import Recipe
from modnet.recipe.routing import Split
from modnet.recipe.sources import Photographs, Source
from modnet.recipe.stages import Evaluate, Stage, TrainingStage
from modnet.registry import DATA, MODELS, Params, Registry

T = TypeVar("T", bound=Params)
BATCH, EVALUATE_BATCH, EVALUATE_LIMIT = 32, 64, 64
EPISODES, EPISODE_EPOCHS = 2, 5
WIDEST, NARROWEST = 16, 8
NOT_AT_HAND = "{name} is not at hand: synthetic pictures of the same shape and classes stand in, which mean nothing"


class SmokeSize(Params):
    """A recipe's own ``smoke:``, where it shows something only if its networks learn something.

    ``images``: how many times the images that each source registers. ``epochs``: of the longest stage; the others keep
    their proportion to it, and each that trains keeps one epoch at least.
    """

    images: PositiveInt = 1
    epochs: PositiveInt = 1


def smoke(recipe: Recipe, size: SmokeSize | None = None) -> Recipe:
    """The recipe at its smoke size: ``reductions`` lists ``models.vit_l.width: 64 -> 16`` and so on."""
    size = size or SmokeSize()
    factor = common_factor(recipe.models)
    share = min(1.0, size.epochs / max(1, *(getattr(stage, "epochs", 0) for stage in recipe.stages.values())))
    told: list[str] = []
    data = {name: _few(source, factor, size.images, told) for name, source in recipe.data.items()}
    models = {name: _shrunk(MODELS, model, factor) for name, model in recipe.models.items()}
    stages = {name: _short(stage, factor, share) for name, stage in recipe.stages.items()}
    told = list(dict.fromkeys(told))
    for name in data:
        told += _changes(f"data.{name}", recipe.data[name], data[name])
    for name in models:
        told += _changes(f"models.{name}", recipe.models[name], models[name])
    for name in stages:
        told += _changes(f"stages.{name}", recipe.stages[name], stages[name])
    name = f"{recipe.name}-smoke"
    return replace(recipe, name=name, data=data, models=models, stages=stages, reductions=told, smoke=True)


def common_factor(models: Mapping[str, Params]) -> int:
    """What all widths are divided by, a power of two: one factor for all, so that stitches and metas still fit."""
    widths = [width for model in models.values() if isinstance(width := getattr(model, "width", None), int)]
    fixed = any(hasattr(model, "width") and not MODELS.get(_name(model)).smoke for model in models.values())
    factor = 1
    while widths and not fixed and max(widths) // factor > WIDEST:
        half = factor * 2
        if any(width % (2 * half) or width // half < NARROWEST for width in widths):
            break
        factor = half
    return factor


def _name(params: Params) -> str:
    return str(getattr(params, "name", ""))


def _shrunk(registry: Registry, params: T, factor: int) -> T:
    small = registry.get(_name(params)).smoke
    return small(params, factor) if small else params  # type: ignore[return-value]


def _few(source: Source, factor: int, times: int, told: list[str]) -> Source:
    """So many times the images of the source's smoke size, but no more than it has without it."""
    small = _shrunk(DATA, source, factor)
    if isinstance(small, Photographs) and small.synthetic:
        told.append(NOT_AT_HAND.format(name=source.name))
    if small.per_class is None or small == source:
        return small
    return small.changed(per_class=min(times * small.per_class, source.per_class or times * small.per_class))


def _short(stage: Stage, factor: int, share: float) -> Stage:
    if isinstance(stage, TrainingStage):
        batch = min(stage.batch, BATCH)
        epochs = min(stage.epochs, max(1, round(stage.epochs * share)))
        values: dict[str, Any] = {
            "epochs": epochs,
            "batch": batch,
            "accumulate": min(stage.accumulate, batch),
            "evaluate_every": max(1, epochs),  # once, at the end
        }
        for name in type(stage).model_fields:
            held, choice = getattr(stage, name), marker(type(stage), name, Choice)
            if choice and isinstance(held, Params):
                values[name] = _shrunk(choice.registry, held, factor)
        if isinstance(stage, Split) and stage.part == "attention":  # a small vit has two heads
            values |= {"experts": min(2, stage.experts), "top_k": min(2, stage.top_k)}
        return stage.changed(**values)
    if isinstance(stage, Evaluate):
        limit = min(stage.limit or EVALUATE_LIMIT, EVALUATE_LIMIT)
        few = stage.few_shot
        if few is not None:
            few = few.changed(episodes=min(few.episodes, EPISODES), epochs=min(few.epochs, EPISODE_EPOCHS))
        return stage.changed(batch=min(stage.batch, EVALUATE_BATCH), limit=limit, few_shot=few)
    return stage


def _changes(path: str, old: Params, new: Params) -> list[str]:
    """Every field that differs, as ``path.field: old -> new``."""
    told = []
    for name, info in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        below = f"{path}.{info.alias or name}"
        if isinstance(before, Params) and isinstance(after, Params):
            told += _changes(below, before, after)
        elif before != after:
            told.append(f"{below}: {shown(before)} -> {shown(after)}")
    return told
