"""Typed parameters of confidence routing: a small network answers, a large one is asked where it is unsure."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from modnet.recipe.fields import KeyedIfSet
from modnet.recipe.stages import Route, WholeStageRef
from modnet.registry import Params

PLAIN = ("max-probability", "entropy", "margin")
"""Scores that are read off the small network's probabilities, with nothing to learn."""


class ConfidenceGate(Params):
    """What turns the small network's probabilities into a confidence: a plain score, or a gate that learns (Mowst).

    ``max-probability``, ``margin`` (between the two largest) and ``entropy`` (1 minus it, as a share of the largest)
    have no parameters. ``hyper`` is a gate whose weights follow from the sorted probabilities. In short ``gate: NAME``.
    """

    kind: Literal["perceptron", "hyper", "max-probability", "entropy", "margin"] = Field("perceptron", alias="name")
    sees: Literal["dispersion", "probabilities"] = "dispersion"  # probabilities: sorted, beside the dispersion
    hidden: PositiveInt = 16
    layers: Annotated[int, Field(ge=2)] = 3
    batch_norm: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing to learn."""
        return self.kind in PLAIN

    @model_validator(mode="after")
    def _needs_none(self) -> "ConfidenceGate":
        fields = type(self).model_fields
        given = [name for name, info in fields.items() if name != "kind" and getattr(self, name) != info.default]
        if self.plain and given:
            raise ValueError(f"gate {self.kind} is read off the probabilities and has no {given[0]}; leave it out")
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Confidence(Route):
    """Two trained networks by confidence: easy inputs take the small one, its threshold chosen on val (Mowst 2024).

    With a plain score as its gate and ``learn: gate`` nothing is trained; ``epochs`` plays no part then.
    """

    method: Literal["confidence"] = "confidence"
    weak: WholeStageRef
    strong: WholeStageRef
    loss: Literal["mowst", "mowst-star"] = "mowst"
    price: Annotated[NonNegativeFloat, KeyedIfSet()] = 0.0  # of asking the large network, nats in the loss
    learn: Literal["gate", "weak", "turns", "joint"] = "gate"  # weak: with the gate; turns: then the strong one
    rounds: PositiveInt = 1  # of learn: turns
    answer: Literal["threshold", "mix"] = "threshold"  # mix: both networks always, logits mixed by confidence
    lose: NonNegativeFloat = 0.1  # points of the strong network's val accuracy that the threshold may cost
    gate: Annotated[ConfidenceGate, BeforeValidator(_named)] = Field(default_factory=ConfidenceGate)
    quirk_probabilities: bool = False  # answer: mix as the reference does, of probabilities

    @model_validator(mode="after")
    def _fits(self) -> "Confidence":
        if self.rounds > 1 and self.learn != "turns":
            raise ValueError(f"rounds belong to learn: turns, not to learn: {self.learn}")
        if self.quirk_probabilities and self.answer != "mix":
            raise ValueError("quirk_probabilities is about answer: mix; with answer: threshold nothing is mixed")
        return self
