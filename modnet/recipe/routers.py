"""Typed parameters of the routers of sparse mixtures of experts, and which blocks hold experts."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from modnet.recipe.fields import Choice, KeyedIfSet
from modnet.recipe.training import BelowOne
from modnet.registry import ROUTERS, Params


class RouterParams(Params):
    """What every router has: how many tokens an expert takes, who comes first, and the losses that balance the load."""

    learns_from_one: ClassVar[bool] = True  # whether the task's gradient reaches the router with top_k 1

    name: str
    bias: bool = False
    capacity: PositiveFloat | None = None  # factor of the even share T·K/E; None: dropless
    capacity_eval: PositiveFloat | None = None  # None: as while training
    round_to: PositiveInt = 1  # an expert's capacity is rounded up to a multiple of it
    capacity_rule: Annotated[Literal["vmoe", "tutel"], KeyedIfSet()] = "vmoe"  # tutel: K·floor(factor·ceil(T/E))
    order: Literal["vanilla", "choice-major", "batch-priority"] = "choice-major"  # who gets the places
    group: PositiveInt | None = None  # images that share places and losses; None: the batch
    importance: NonNegativeFloat = 0.0
    load: NonNegativeFloat = 0.0  # acts where there is noise
    gshard: NonNegativeFloat = 0.0
    switch: NonNegativeFloat = 0.0
    z: NonNegativeFloat = 0.0
    mutual_information: NonNegativeFloat = 0.0
    concentration: NonNegativeFloat = 0.0  # the contrary: few experts for all, so that others can be pruned
    balance_scope: Literal["local", "global"] = "local"  # global: losses see the whole batch, and that of all processes

    @property
    def limited(self) -> bool:
        """Whether experts have a limit of places, in training or in evaluation."""
        return self.capacity is not None or self.capacity_eval is not None

    def learns(self, top_k: int) -> bool:
        """Whether the task's gradient reaches the router."""
        return self.learns_from_one or top_k > 1


class SoftmaxTopK(RouterParams):
    """Softmax over all experts, then the top K of it (V-MoE); noise while training only."""

    name: str = "softmax-top-k"
    noise: NonNegativeFloat = 0.0  # standard deviation times the number of experts


class RenormalisedTopK(SoftmaxTopK):
    """Softmax over all experts, then the top K, divided by their sum."""

    learns_from_one: ClassVar[bool] = False
    name: str = "renormalised"
    scale: PositiveFloat = 1.0  # what the weights add up to


class TopKSoftmax(RouterParams):
    """The top K logits, then softmax over these (fastmoe's naive gate, m2mKD's V-MoE)."""

    learns_from_one: ClassVar[bool] = False
    name: str = "top-k-softmax"
    bias: bool = True
    scale: PositiveFloat = 1.0  # what the weights add up to


class NoisyTopK(RouterParams):
    """Noise of a learned size while training, top K, softmax over these (Shazeer et al. 2017; fastmoe)."""

    learns_from_one: ClassVar[bool] = False
    name: str = "noisy-top-k"
    importance: NonNegativeFloat = 1.0
    load: NonNegativeFloat = 1.0


class ExpertChoice(RouterParams):
    """Each expert takes the tokens that it scores highest (Zhou et al. 2022); `top_k` plays no part."""

    name: str = "expert-choice"
    capacity: PositiveFloat | None = 2.0
    noise: NonNegativeFloat = 0.0


class SampledTopK(SoftmaxTopK):
    """As softmax-top-k; while training, ``sampled`` of the K are drawn by their probabilities (ModuleFormer)."""

    name: str = "sampled-top-k"
    sampled: PositiveInt = 1

    @model_validator(mode="after")
    def _draws_alone(self) -> "SampledTopK":
        if self.noise:
            raise ValueError("router sampled-top-k draws experts in place of noise; leave out noise")
        return self


class ByKeys(RouterParams):
    """A router that scores by the experts' own keys and has no parameters."""

    noise: NonNegativeFloat = 0.0  # standard deviation times the number of experts
    quirk_load: bool = False  # the reference's load loss, which takes a threshold of logits from probabilities

    @model_validator(mode="after")
    def _has_no_bias(self) -> "ByKeys":
        if self.bias:
            raise ValueError(f"router {self.name} has no parameters, so no bias")
        return self


class AveragedKeys(ByKeys):
    """avg-k of EMoE: an expert's score is the mean of its keys times the token; no parameters, every weight is 1.

    With ``momentum`` m these means are, after each step, m times the old and 1 - m times the new ones.
    """

    name: str = "avg-k"
    momentum: Annotated[BelowOne, KeyedIfSet()] = 0.0  # of the means: how slowly they follow the keys


class NormedKeys(ByKeys):
    """An expert's score is the length of its keys' products with the token; no parameters, every weight is 1.

    For heads of attention that is the length of the token's query without its bias.
    """

    name: str = "norm-k"


class Cosine(RouterParams):
    """Cosine of projected token and expert, at a learned temperature; softmax, top K, renormalised (GMoE, EMoE-learn).

    With top_k 1 the weight stays the probability, or no gradient of the task would reach the router.
    """

    name: str = "cosine"
    bias: bool = True  # of the projection
    hidden: PositiveInt = 256
    noise: NonNegativeFloat = 0.0
    quirk_load: bool = False


for _params in (
    SoftmaxTopK,
    RenormalisedTopK,
    TopKSoftmax,
    NoisyTopK,
    ExpertChoice,
    SampledTopK,
    AveragedKeys,
    NormedKeys,
    Cosine,
):
    _key = _params.model_fields["name"].default
    _file = "emoe" if _params in (AveragedKeys, NormedKeys, Cosine) else "routers"
    ROUTERS.register(_key, _params, f"modnet.layers.{_file}:{_params.__name__}Gate")
ROUTERS.preset(
    "vmoe",
    "softmax-top-k",
    about="V-MoE as published: noise, capacity 1.05 (4.0 in evaluation), groups of 8 images, both losses",
    noise=1.0,
    capacity=1.05,
    capacity_eval=4.0,
    round_to=4,
    group=8,
    importance=0.005,
    load=0.005,
)
ROUTERS.tag(
    "avg-k",
    "published",
    about="avg-k as EMoE trains it: noise, capacity 1.5, batch priority, both losses with the reference's load",
    noise=1.0,
    capacity=1.5,
    order="batch-priority",
    capacity_rule="tutel",
    importance=0.005,
    load=0.005,
    quirk_load=True,
)
ROUTERS.preset("switch", "softmax-top-k", about="for top_k 1: Switch's balance loss and z-loss", switch=0.01, z=0.001)


class PerceptronTopK(SoftmaxTopK):
    """A perceptron, softmax over all experts, then the top K of it (ModuleFormer)."""

    name: str = "perceptron"
    hidden: PositiveInt = 64
    silent: NonNegativeInt = 0  # rows of experts that were pruned, which stay in the softmax


class CentroidTopK(PerceptronTopK):
    """Cosine of a projected token and each expert's direction, softmax, then the top K of it (ModuleFormer's gmm)."""

    name: str = "centroids"


ROUTERS.register("perceptron", PerceptronTopK, "modnet.layers.perceptron_router:PerceptronTopKGate")
ROUTERS.register("centroids", CentroidTopK, "modnet.layers.perceptron_router:CentroidTopKGate")

Router = Annotated[SerializeAsAny[Params], BeforeValidator(ROUTERS.read), Choice(ROUTERS)]
NO_GRADIENT = (
    "with top_k 1 router {name} gives every token the weight 1, so no gradient of the task reaches it; "
    "take top_k 2, or router softmax-top-k, whose weights do not add up to 1"
)


def check_routes(experts: int, top_k: int, router: Params) -> None:
    """Raises ValueError for more choices than experts, or a router that could not learn."""
    if top_k > experts:
        raise ValueError(f"top_k {top_k} asks for more experts than there are ({experts})")
    if isinstance(router, RouterParams) and not router.learns(top_k):
        raise ValueError(NO_GRADIENT.format(name=router.name))


def _placement(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"all|(every|last|contiguous-last)-[1-9]\d*", value):
        return value
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError("a placement is all, every-N, last-N, contiguous-last-N, or a list of block numbers from 0")


Placement = Annotated[str | tuple[NonNegativeInt, ...], BeforeValidator(_placement)]


def places(placement: str | Sequence[int], blocks: int) -> list[int]:
    """The numbers, from 0, of the blocks that hold experts, ascending.

    ``every-N``: blocks N-1, 2N-1, …; ``last-N``: the last N of the odd blocks 1, 3, 5, …, as V-MoE means it;
    ``contiguous-last-N``: the last N blocks. Raises ValueError where the network has no such blocks.
    """
    if not isinstance(placement, str):
        found = sorted(set(placement))
    elif placement == "all":
        found = list(range(blocks))
    else:
        kind, _, number = placement.rpartition("-")
        n = int(number)
        odd = list(range(1, blocks, 2))
        found = {"every": list(range(n - 1, blocks, n)), "last": odd[-n:]}.get(kind, list(range(blocks))[-n:])
        if kind != "every" and len(found) < n:
            found = []
    if not found or found[-1] >= blocks:
        raise ValueError(f"placement {placement} asks for blocks that a network of {blocks} blocks does not have")
    return found
