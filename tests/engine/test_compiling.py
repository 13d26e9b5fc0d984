from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modnet.recipe.training import SGD
from tests.engine.toy import run, weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_objective_learns_the_same_and_compiles_once(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    eager, _ = run(tmp_path / "eager", optimizer=SGD(lr=0.1))
    graphs = {}
    for epochs in (1, 3):
        torch._dynamo.reset()
        counters.clear()
        fast, _ = run(tmp_path / f"fast-{epochs}", optimizer=SGD(lr=0.1), epochs=epochs, compile=True)
        graphs[epochs] = counters["stats"]["unique_graphs"]
    for name, tensor in weights(eager).items():
        torch.testing.assert_close(weights(fast)[name], tensor, atol=1e-5, rtol=1e-4)
    # Keys change with every step; graphs must not.
    assert graphs[3] == graphs[1] > 0
