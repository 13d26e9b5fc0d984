"""Typed parameters of confidence routing: a small network answers, a large one is asked where it is unsure."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from modnet.recipe.stages import Route, WholeStageRef
from modnet.registry import Params


class ConfidenceGate(Params):
    """What turns the spread of the small network's probabilities into a confidence."""

    kind: Literal["perceptron", "hyper"] = "perceptron"  # hyper: its weights follow from the sorted probabilities
    sees: Literal["dispersion", "probabilities"] = "dispersion"  # probabilities: sorted, beside the dispersion
    hidden: PositiveInt = 16
    layers: Annotated[int, Field(ge=2)] = 3
    batch_norm: bool = False


class Confidence(Route):
    """Two trained networks by confidence: easy inputs take the small one, its threshold chosen on val (Mowst 2024)."""

    method: Literal["confidence"] = "confidence"
    weak: WholeStageRef
    strong: WholeStageRef
    loss: Literal["mowst", "mowst-star"] = "mowst"
    learn: Literal["gate", "weak", "turns", "joint"] = "gate"  # weak: with the gate; turns: then the strong one
    rounds: PositiveInt = 1  # of learn: turns
    answer: Literal["threshold", "mix"] = "threshold"  # mix: both networks always, logits mixed by confidence
    lose: NonNegativeFloat = 0.1  # points of the strong network's val accuracy that the threshold may cost
    gate: ConfidenceGate = Field(default_factory=ConfidenceGate)
    quirk_probabilities: bool = False  # answer: mix as the reference does, of probabilities

    @model_validator(mode="after")
    def _fits(self) -> "Confidence":
        if self.rounds > 1 and self.learn != "turns":
            raise ValueError(f"rounds belong to learn: turns, not to learn: {self.learn}")
        if self.quirk_probabilities and self.answer != "mix":
            raise ValueError("quirk_probabilities is about answer: mix; with answer: threshold nothing is mixed")
        return self
