"""Typed stages of ``run: route``: what puts experts in the place of a trained network's dense blocks."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from modnet.recipe.fields import KeyedIfSet
from modnet.recipe.routers import (
    NO_GRADIENT,
    AveragedKeys,
    Placement,
    RenormalisedTopK,
    Router,
    RouterParams,
)
from modnet.recipe.stages import Route, Whole, WholeStageRef
from modnet.recipe.training import Fraction


class Converted(Route, Whole):
    """What the methods share that turn dense blocks into blocks with experts."""

    from_: WholeStageRef = Field(alias="from")
    placement: Placement = "every-2"
    experts: PositiveInt = 8
    top_k: PositiveInt = 2  # experts that a token goes to
    router: Router = Field(default_factory=RenormalisedTopK)

    @model_validator(mode="after")
    def _routes(self) -> "Converted":
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} asks for more experts than there are ({self.experts})")
        if isinstance(self.router, RouterParams) and not self.router.learns(self.top_k):
            raise ValueError(NO_GRADIENT.format(name=self.router.name))
        return self


class Upcycle(Converted):
    """Sparse upcycling: every expert starts as a copy of the block's MLP, the router afresh (Komatsuzaki et al. 2022).

    Where the router's weights add up to 1 and nothing is dropped, the network starts as the dense one. ``fragments``
    cuts every copy along its hidden units into so many experts, whose router rows start equal, so that a token
    finds whole copies (MoE-Tuning, arXiv 2507.17436).
    """

    method: Literal["upcycle"] = "upcycle"
    fragments: PositiveInt = 1
    noise: NonNegativeFloat = 0.0  # on each expert's weights, relative to their deviation
    reinit: Fraction = 0.0  # share of each expert's hidden units that is drawn afresh

    @model_validator(mode="after")
    def _whole_copies(self) -> "Upcycle":
        if self.experts % self.fragments or self.top_k % self.fragments:
            raise ValueError(
                f"experts {self.experts} and top_k {self.top_k} must both be multiples of fragments {self.fragments}, "
                "or a token would find parts of a copy"
            )
        return self


class Split(Converted):
    """EMoE: the MLP's hidden units are clustered by their keys into experts of equal size (arXiv 2310.10908).

    No parameter is added: with router avg-k an expert's score is the mean of its keys times the token. With top_k
    equal to experts the network computes what the dense one does, also after training. ``part: attention`` makes
    experts of the heads of attention, in their order (MoH, arXiv 2410.11842): ``experts`` must divide their number.
    """

    method: Literal["split"] = "split"
    part: Annotated[Literal["mlp", "attention"], KeyedIfSet()] = "mlp"
    experts: PositiveInt = 16
    top_k: PositiveInt = 8
    router: Router = Field(default_factory=AveragedKeys)

    @model_validator(mode="after")
    def _all_are_served(self) -> "Split":
        router = self.router
        if self.part == "attention" and isinstance(router, RouterParams) and router.capacity is not None:
            raise ValueError(f"heads of attention drop no token; leave out the capacity of router {router.name}")
        return self
