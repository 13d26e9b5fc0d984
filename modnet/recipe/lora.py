"""Typed parameters of low-rank experts on a trained network: LoRA-Mixer and PEGO."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from modnet.recipe.fields import ByContent
from modnet.recipe.stages import Mismatch, Route, WholeStageRef

Target = Literal["q", "k", "v", "o"]
File = Annotated[str, ByContent()]


class Lora(Route):
    """Adapters beside a frozen network's attention projections, routed (LoRA-Mixer) or summed (PEGO)."""

    method: Literal["lora"] = "lora"
    from_: WholeStageRef = Field(alias="from")
    on_mismatch: Mismatch = Field(default_factory=Mismatch)
    mix: Literal["routed", "sum"] = "routed"
    experts: PositiveInt = 4  # adapters on each projection; as many as are given, if some are
    rank: PositiveInt = 4
    alpha: PositiveFloat | None = None  # the adapters are scaled by alpha / rank; None: by 1
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("q", "k", "v", "o")  # PEGO: q and v
    top_k: PositiveInt = 3  # of mix: routed, in evaluation; at most as many as there are adapters
    train: Literal["soft", "hard-soft"] = "soft"  # hard-soft: the top k while training too, with the soft gradient
    balance: NonNegativeFloat = 1e-2  # of mix: routed
    entropy: float = 1e-2  # positive: tokens decide for few adapters; the paper prints a minus
    orthogonal: NonNegativeFloat = 0.0  # PEGO's weight; sums over whole matrices, so it depends on their size
    norm: Literal["l1", "fro2"] = "l1"
    head: bool = True  # whether the classifier learns as well
    adapters: tuple[WholeStageRef, ...] = ()  # stages of this method whose adapters become the experts
    files: tuple[File, ...] = ()  # safetensors of such networks, as a store or a user keeps them
    learn: Literal["all", "router"] = "all"  # router: adapters that were given stay as they are
    preserve: NonNegativeFloat = 0.0  # weight of the squared distance to the adapters that were given
    fold: bool = False  # of mix: sum: add the trained adapters into the weights

    @model_validator(mode="after")
    def _fits(self) -> "Lora":
        given = self.adapters or self.files
        if self.learn == "router" and not (given and self.mix == "routed"):
            raise ValueError("learn: router is about adapters that are given (adapters, files) and mix: routed")
        if self.preserve and (not given or self.learn == "router"):
            raise ValueError("preserve is about adapters that are given and learn: all")
        if self.fold and self.mix != "sum":
            raise ValueError("fold belongs to mix: sum; routed adapters are another map for every token")
        return self
