"""The baseline of one-hot products computes the same mixture, so the figures compare like with like."""

from __future__ import annotations

import sys

import pytest
import torch

from modnet.bench import moe as bench
from modnet.bench.pairs import Measure, Skipped
from modnet.chain import Pass


def test_one_hot_products_are_the_same_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WIDTH", 12)
    monkeypatch.setattr(bench, "HIDDEN", 8)
    layer, dense = bench._layers(2, torch.float32)
    x = torch.linspace(-1, 1, 2 * 9 * 12).sin().view(2, 9, 12)
    torch.testing.assert_close(bench.OneHot(layer)(x, Pass()), layer(x, Pass()))
    assert dense.fc1.out_features == 2 * layer.experts.fc1.weight.shape[1]


def test_every_case_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("TOKENS", 64), ("WIDTH", 12), ("HIDDEN", 8), ("NARROW", 4)):
        monkeypatch.setattr(bench, name, size)
    monkeypatch.setattr(bench, "bf16_missing", lambda: None)
    results = {found.name: found for found in bench.moe(1)}
    dense = [f"moe top {k} {dtype}" for dtype in ("float32", "bfloat16") for k in (1, 2)]
    dense = [told for name in dense for told in (name, f"{name}, experts alone")]
    assert [*results] == [*dense, "moe Mixtral", "moe one-hot", "moe one-hot, by FLOPs", "moe routing"]
    more = results["moe one-hot, by FLOPs"]
    assert isinstance(more, Measure)
    assert more.figure > 1


def test_routing_is_a_share_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TOKENS", 64)
    monkeypatch.setattr(bench, "turns", lambda calls, repeats: [(4.0, 5.0), (3.0, 2.5)])
    found = bench.routing(2)
    assert isinstance(found, Measure)
    assert found.values == (0.25, 0.5)


def test_without_transformers_mixtral_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert bench.mixtral(1) == Skipped("moe Mixtral", "transformers is not installed")


def test_mixtral_is_the_same_layer() -> None:
    pytest.importorskip("transformers")
    block, layer = bench.mixtral_block(12, 8, 4, 2), bench.swiglu_layer(12, 8, 4, 2)
    with torch.no_grad():
        layer.gate.gate.weight.copy_(block.gate.weight)
        first, second = block.experts.gate_up_proj.chunk(2, dim=1)
        assert layer.experts.up is not None
        layer.experts.fc1.weight.copy_(first)
        layer.experts.up.weight.copy_(second)
        layer.experts.fc2.weight.copy_(block.experts.down_proj)
    x = torch.linspace(-1, 1, 2 * 9 * 12).sin().view(2, 9, 12)
    torch.testing.assert_close(layer(x, Pass()), bench.only_tokens(block)(x))
