"""``run: distill`` in its four forms."""

from __future__ import annotations

from modnet.methods.alignment import Alignment
from modnet.methods.base import Inputs, Method
from modnet.methods.features import FeatureM2m
from modnet.methods.m2mkd import M2mKD
from modnet.methods.supervised import Hinton
from modnet.recipe.stages import Align, Distill, Features, HintonKD, M2mkd


def method(stage: Distill, inputs: Inputs) -> Method:
    """The method of a distillation stage, by its ``method:``."""
    if isinstance(stage, M2mkd):
        return M2mKD(stage, inputs)
    if isinstance(stage, HintonKD):
        return Hinton(stage, inputs)
    if isinstance(stage, Align):
        return Alignment(stage, inputs)
    assert isinstance(stage, Features)
    return FeatureM2m(stage, inputs)
