"""Typed parameters of everything that a training stage is made of: optimizers, schedules, augmentations."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from modnet.recipe.fields import KeyedIfSet
from modnet.registry import AUGMENTS, OPTIMIZERS, SCHEDULES, Params

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Params):
    """Decoupled weight decay; none on vectors, biases, class tokens and position tables."""

    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    # Deep Incubation's reference, in module training: class tokens and position tables decay as well
    quirk_decay_embeddings: Annotated[bool, KeyedIfSet()] = False
    quirk_decay_all: Annotated[bool, KeyedIfSet()] = False  # NAC's reference: every parameter decays


class SGD(Params):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: BelowOne = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0


class Muon(Params):
    """Orthogonalised momentum on the blocks' matrices and kernels (views that leaves declare), AdamW on all else."""

    name: Literal["muon"] = "muon"
    lr: PositiveFloat = 0.02
    momentum: BelowOne = 0.95
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 0.0
    ns_steps: PositiveInt = 5
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    others: AdamW = Field(default_factory=lambda: AdamW(lr=3e-3, betas=(0.9, 0.95)))


OPTIMIZERS.register("adamw", AdamW, "modnet.engine.optimizers:adamw")
OPTIMIZERS.register("sgd", SGD, "modnet.engine.optimizers:sgd")
OPTIMIZERS.register("muon", Muon, "modnet.engine.optimizers:muon")


def _warmup(value: Any) -> Any:
    """A length in steps (100), in epochs ("2 epochs") or as a share of all steps ("10%")."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*(%|epochs?)", value.strip()):
        return value.strip()
    raise ValueError('a length is a number of steps (100), "10%" or "2 epochs"')


Length = Annotated[int | str, BeforeValidator(_warmup)]


class Schedule(Params):
    """Learning-rate factor by step: linear warm-up from ``start`` of the rate, then the shape down to ``floor``."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Length = "10%"
    start: Fraction = 0.0
    floor: Fraction = 0.0


class EpochwiseCosine(Params):
    """The Deep Incubation reference: cosine per epoch, absolute warm-up start and floor, one epoch of lag by option."""

    name: Literal["cosine-epochwise"] = "cosine-epochwise"
    warmup_epochs: NonNegativeInt = 20
    warmup_lr: PositiveFloat = 1e-6
    min_lr: PositiveFloat = 1e-5
    quirk_lag: bool = False


def _short_warmup(params: Schedule, factor: int) -> Schedule:
    return params.changed(warmup="10%") if isinstance(params.warmup, int) and params.warmup else params


def _no_warmup(params: EpochwiseCosine, factor: int) -> EpochwiseCosine:
    return params.changed(warmup_epochs=0)


for _name in ("cosine", "linear", "constant"):
    SCHEDULES.register(
        _name,
        Schedule,
        f"modnet.engine.schedules:{_name}",
        smoke=_short_warmup,
        about=f"learning rate by step, {_name} after a linear warm-up",
    )
SCHEDULES.register("cosine-epochwise", EpochwiseCosine, "modnet.engine.schedules:cosine_epochwise", smoke=_no_warmup)


class Crop(Params):
    """Shift each image by up to ``pad`` pixels each way; pixels from outside are zero."""

    name: Literal["crop"] = "crop"
    pad: PositiveInt = 2


class ResizedCrop(Params):
    """Show a random part of each image, resized to the whole (Szegedy et al. 2015): first, of the whole picture."""

    name: Literal["resized-crop"] = "resized-crop"
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)  # share of the area
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)  # width over height


class Flip(Params):
    """Mirror each image left to right with a probability."""

    name: Literal["flip"] = "flip"
    p: Fraction = 0.5


class Erase(Params):
    """Fill a random rectangle with noise (random erasing, Zhong et al. 2017)."""

    name: Literal["erase"] = "erase"
    p: Fraction = 0.25
    area: tuple[Fraction, Fraction] = (0.02, 0.33)


class Mixup(Params):
    """Blend each image and its target with its neighbour's in the epoch's order (Zhang et al. 2017)."""

    name: Literal["mixup"] = "mixup"
    alpha: PositiveFloat = 0.8
    p: Fraction = 1.0


class CutMix(Params):
    """Paste a box of the neighbour's image and mix the targets by its area (Yun et al. 2019)."""

    name: Literal["cutmix"] = "cutmix"
    alpha: PositiveFloat = 1.0
    p: Fraction = 1.0


class MixupOrCutMix(Params):
    """Mixup or CutMix for each sample, one of the two by ``switch``: the DeiT recipe's pair."""

    name: Literal["mixup-cutmix"] = "mixup-cutmix"
    mixup: PositiveFloat = 0.8
    cutmix: PositiveFloat = 1.0
    switch: Fraction = 0.5
    p: Fraction = 1.0


class RandAugment(Params):
    """``ops`` random operations for each image at magnitude ``m`` of 10 with spread ``std`` (Cubuk et al. 2019)."""

    name: Literal["randaugment"] = "randaugment"
    ops: PositiveInt = 2
    m: Annotated[float, Field(ge=0, le=10)] = 9
    std: NonNegativeFloat = 0.5


for _params in (Crop, ResizedCrop, Flip, Erase, Mixup, CutMix, MixupOrCutMix, RandAugment):
    _key = _params.model_fields["name"].default
    AUGMENTS.register(_key, _params, f"modnet.data.augment:{_key.replace('-', '_')}")
