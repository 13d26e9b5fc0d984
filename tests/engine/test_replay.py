"""Stored outputs come back as they were, as far as their form of storage holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.engine.replay import Coding, Layout, Replay, replays
from modnet.errors import RunFailed
from modnet.randomness import Key

BATCH, CLASSES = 4, 7


def outputs(step: int) -> dict[str, Tensor]:
    ids = torch.arange(BATCH)
    logits = 3 * Key.of(step, "logits").normal(ids, CLASSES)
    return {"target0": logits, "taught0": Key.of(step, "features").normal(ids, 10).view(BATCH, 2, 5)}


def stored(home: Path, names: tuple[str, ...] = ("target0",), store: str = "fp32", k: int = 0) -> Replay:
    chosen = {name: outputs(0)[name] for name in names}
    identity = {"store": store, "k": k, "frozen": "abc"}
    replay = Replay.create(home, identity, Layout.of(chosen, Coding(store, k)))
    for epoch in range(2):
        replay.write(epoch, 0, [{name: outputs(10 * epoch + s)[name] for name in names} for s in range(3)])
    return replay


def test_fp32_gives_the_same_bits_at_every_step(tmp_path: Path) -> None:
    stored(tmp_path, ("target0", "taught0"))
    replay = Replay.open(tmp_path, {"store": "fp32", "k": 0, "frozen": "abc"})
    assert replay is not None
    assert Replay.open(tmp_path, {"store": "fp32", "k": 0, "frozen": "abd"}) is None
    for epoch, step in ((0, 0), (0, 2), (1, 1)):
        found, there = replay.rows(epoch, step, ["target0", "taught0"]), outputs(10 * epoch + step)
        assert all(torch.equal(found[name], there[name]) for name in there)
    assert torch.equal(replay.rows(1, 2, ["target0"], slice(1, 3))["target0"], outputs(12)["target0"][1:3])
    assert replay.has(1, 2)
    assert not replay.has(2, 0)


def test_fp16_and_top_k_come_close(tmp_path: Path) -> None:
    half = stored(tmp_path, store="fp16").rows(0, 1, ["target0"])["target0"]
    assert torch.allclose(half, outputs(1)["target0"], atol=1e-2)
    best = stored(tmp_path, store="top-k", k=3).rows(0, 1, ["target0"])["target0"]
    there = outputs(1)["target0"].softmax(1)
    assert torch.allclose(best.exp().sum(1), torch.ones(BATCH), atol=1e-2)
    top = there.topk(3).indices
    assert torch.allclose(best.exp().gather(1, top), there.gather(1, top), atol=2e-3)
    rest = best.exp().scatter(1, top, 0)
    assert torch.allclose(rest.sum(1), 1 - there.gather(1, top).sum(1), atol=5e-3)


def test_top_k_refuses_features() -> None:
    with pytest.raises(RunFailed, match="logits alone"):
        Layout.of(outputs(0), Coding("top-k", 3))


def test_a_shard_that_was_changed_is_found_and_a_replay_can_be_deleted(tmp_path: Path) -> None:
    replay = stored(tmp_path)
    assert replay.damaged() == []
    assert replay.epochs() == 2
    file = replay.shard(1, 0) / "target0.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert replay.damaged() == [file]
    assert [found.folder for found in replays(tmp_path)] == [replay.folder]
    replay.delete()
    assert replays(tmp_path) == []


def test_another_identity_in_the_folder_is_refused(tmp_path: Path) -> None:
    replay = stored(tmp_path)
    wrong: Any = {"store": "fp32", "k": 0, "frozen": "other"}
    Replay.create(tmp_path, wrong, replay.layout)
    (Replay.create(tmp_path, wrong, replay.layout).folder / "replay.json").replace(replay.folder / "replay.json")
    with pytest.raises(RunFailed, match="another teacher"):
        Replay.open(tmp_path, {"store": "fp32", "k": 0, "frozen": "abc"})
