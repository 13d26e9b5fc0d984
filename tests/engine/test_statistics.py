"""BatchNorm's running statistics are kept with the weights: averaged, selected, saved, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modnet.chain import Chain, Module, Pass
from modnet.engine.checkpoint import Checkpoints
from modnet.engine.job import Track
from modnet.engine.tracks import LiveTrack
from modnet.randomness import Key
from modnet.recipe.training import SGD, AdamW, Schedule
from modnet.surgery.freezing import only_head
from tests.engine import toy
from tests.engine.test_resume import checkpoint, killed_at, same
from tests.engine.toy import WIDTH, Head, run, weights


class Normed(Module):
    """A linear layer behind a BatchNorm."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return x + torch.relu(self.fc(self.norm(x)))


def normed_chain(seed: int = 0) -> Chain:
    with Key.of(seed).forked():
        return Chain([Normed(), Normed(), Head()], [0, 1, 3])


@pytest.fixture(autouse=True)
def _normed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "toy_chain", normed_chain)


@pytest.mark.parametrize("values", [{"ema": 0.9}, {"select": "last"}, {"ema": 0.9, "select": "last"}])
def test_resume_keeps_the_statistics_bit_for_bit(values: dict[str, Any], tmp_path: Path) -> None:
    arguments = {"optimizer": AdamW(lr=0.01), "checkpoint_every": 1, "epochs": 2, **values}
    whole, outcome = run(tmp_path / "whole", **arguments)
    killed_at(6, tmp_path / "killed", **arguments)
    job, resumed = run(tmp_path / "killed", **arguments)
    assert same(weights(job), weights(whole))
    assert resumed.metrics == outcome.metrics
    assert all(same(a, b) for a, b in zip(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"), strict=True))
    assert int(weights(job)["track0/0.norm.num_batches_tracked"]) in (4, 8)


def test_the_statistics_that_were_measured_are_given_on(tmp_path: Path) -> None:
    job, outcome = run(tmp_path / "run", optimizer=AdamW(lr=0.05), ema=0.8, epochs=4)
    assert job.validate() == outcome.metrics
    found = Checkpoints(tmp_path / "run", "toy").load()
    assert found is not None
    assert same({f"track0/{k}": v for k, v in found.best["track0"].items()}, weights(job))


def test_statistics_are_averaged_with_the_weights() -> None:
    chain = normed_chain()
    live = LiveTrack(Track("t", chain, SGD(lr=0.1), Schedule(), ema=0.5), 10, 5)
    expected = chain.state_dict()["0.norm.running_mean"].clone()
    for step in range(3):
        x = Key.of(step).normal(torch.arange(12), WIDTH) + 3
        chain.train()(x, Pass()).square().mean().backward()
        live.step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = expected + (1 - decay) * (chain.state_dict()["0.norm.running_mean"] - expected)
    now = chain.state_dict()["0.norm.running_mean"].clone()
    with live.averaged():
        torch.testing.assert_close(chain.state_dict()["0.norm.running_mean"], expected)
        assert not torch.equal(expected, now)
    assert torch.equal(chain.state_dict()["0.norm.running_mean"], now)
    assert int(chain.state_dict()["0.norm.num_batches_tracked"]) == 3


def test_statistics_of_a_frozen_front_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toy, "toy_chain", lambda seed=0: only_head(normed_chain(seed)))
    job, _ = run(tmp_path / "run", optimizer=AdamW(lr=0.05), ema=0.8, epochs=2)
    fresh, after = normed_chain().state_dict(), job.tracks[0].chain.state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], after[name])}
    assert changed == {"2.head.weight", "2.head.bias"}
