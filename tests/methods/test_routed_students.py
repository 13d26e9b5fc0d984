"""A student with experts is taught module by module, joined and fine-tuned like any other."""

from __future__ import annotations

import pytest

from modnet.layers.moe import MoEBlock
from tests.methods.conftest import Lab


@pytest.mark.parametrize("stage", ["student", "folded"])
def test_a_student_with_experts(taught: Lab, stage: str) -> None:
    inputs = taught.run("models.small.name=vmoe", "models.small.experts=4", "models.small.router=vmoe", only=stage)
    network = taught.chain(inputs, stage)
    assert sum(isinstance(leaf, MoEBlock) for leaf in network.leaves) == 4
    result = inputs.store.result(inputs.keys[stage])
    assert 0 <= result["before_val_top1"] <= 100
