"""The baseline of one-hot products computes the same mixture, so the figures compare like with like."""

from __future__ import annotations

import pytest
import torch

from modnet.bench import moe as bench
from modnet.chain import Pass


def test_one_hot_products_are_the_same_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WIDTH", 12)
    monkeypatch.setattr(bench, "HIDDEN", 8)
    layer, dense = bench._layers(2, torch.float32)
    x = torch.linspace(-1, 1, 2 * 9 * 12).sin().view(2, 9, 12)
    torch.testing.assert_close(bench.OneHot(layer)(x, Pass()), layer(x, Pass()))
    assert dense.fc1.out_features == 2 * layer.experts.fc1.weight.shape[1]


def test_every_case_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("TOKENS", 64), ("WIDTH", 12), ("HIDDEN", 8)):
        monkeypatch.setattr(bench, name, size)
    names = [found.name for found in bench.moe(1)]
    assert names == [f"moe top {k} {dtype}" for dtype in ("float32", "bfloat16") for k in (1, 2)] + ["moe one-hot"]
