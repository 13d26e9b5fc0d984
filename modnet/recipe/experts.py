"""Typed parameters of what is done with the experts of a trained network: concentrate, prune, grow (ModuleFormer)."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from modnet.recipe.stages import Route, Whole, WholeStageRef
from modnet.recipe.training import Fraction


class OfExperts(Route):
    """What these stages share: the trained network that they change."""

    from_: WholeStageRef = Field(alias="from")


class Concentrate(OfExperts, Whole):
    """Fine-tune all, with the load of every router drawn to few experts, so that the others can be pruned."""

    method: Literal["concentrate"] = "concentrate"
    weight: PositiveFloat = 1e-2  # of the entropy of the mean load; takes the place of mutual information


class Prune(OfExperts, Whole):
    """Remove the experts that are chosen least, as counted on val; then fine-tune if `epochs` are given."""

    method: Literal["prune"] = "prune"
    epochs: NonNegativeInt = 0
    keep: Annotated[float, Field(gt=0, le=1)] | None = None  # share of each mixture's experts
    usage: Fraction | None = None  # or: those with at least this share of the load
    rows: Literal["keep", "drop"] = "keep"  # of the router: keep them in the softmax, so that nothing else shifts

    @model_validator(mode="after")
    def _one_rule(self) -> "Prune":
        if (self.keep is None) == (self.usage is None):
            raise ValueError("give keep (a share of the experts) or usage (a share of the load), one of the two")
        return self


class Grow(OfExperts):
    """Add experts to every mixture and train them alone, all else frozen: a new domain without forgetting the old."""

    method: Literal["grow"] = "grow"
    experts: PositiveInt = 4  # added to each mixture
    penalty: NonNegativeFloat = 1e-3  # of the squared router rows of the new experts, lest they take all traffic
