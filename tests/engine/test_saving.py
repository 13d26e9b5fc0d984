"""Writing in the background: copies are of the moment, errors reach the caller, nothing is left unwritten."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from modnet.engine.checkpoint import Checkpoint, Checkpoints
from modnet.engine.saving import Writer, copied
from modnet.errors import RunFailed
from tests.engine.toy import run


def test_copies_are_of_the_moment() -> None:
    tensor = torch.zeros(3)
    found = copied({"x": tensor})
    tensor += 1
    assert found["x"].tolist() == [0, 0, 0]


def test_one_piece_at_a_time_and_errors_reach_the_caller() -> None:
    writer, done, gate = Writer(), list[int](), threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    writer.start(first)
    assert done == []
    gate.set()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]

    def fail() -> None:
        raise RunFailed("no room")

    writer.start(fail)
    with pytest.raises(RunFailed, match="no room"):
        writer.start(lambda: done.append(3))
    writer.wait()
    assert done == [1, 2]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    save = Checkpoints.save

    def slow(self: Checkpoints, checkpoint: Checkpoint) -> None:
        threads.add(threading.current_thread().name)
        save(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save", slow)
    run(tmp_path / "a", checkpoint_every=1)
    assert threads == {"modnet checkpoint"}
    found = Checkpoints(tmp_path / "a", "toy").load()
    assert found is not None
    assert found.progress.step == 12


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Checkpoints, checkpoint: Checkpoint) -> None:
        raise RunFailed("could not be written: no space left")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(RunFailed, match="no space left"):
        run(tmp_path / "a", epochs=1)
