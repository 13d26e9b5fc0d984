"""Typed stages of ``run: route``: what puts experts in the place of a trained network's dense blocks."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from modnet.recipe.fields import KeyedIfSet
from modnet.recipe.routers import (
    AveragedKeys,
    ExpertChoice,
    Placement,
    RenormalisedTopK,
    Router,
    RouterParams,
    check_routes,
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
        check_routes(self.experts, self.top_k, self.router)
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
        if self.fragments > 1 and not hasattr(self.router, "scale"):
            raise ValueError(
                f"the parts of a copy add up if the weights of router {self.router.name} do; "  # type: ignore[attr-defined]
                "with fragments take renormalised or top-k-softmax"
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
        if self.part != "attention" or not isinstance(router, RouterParams):
            return self
        if isinstance(router, ExpertChoice):
            raise ValueError("tokens choose heads of attention; take another router than expert-choice")
        if router.limited:
            raise ValueError(f"heads of attention drop no token; leave out the capacity of router {router.name}")
        return self
