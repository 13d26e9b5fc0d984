"""A run that was stopped anywhere and started again equals the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modnet.engine.checkpoint import Checkpoints
from modnet.engine.trainer import train
from modnet.errors import Interrupted, RunFailed
from modnet.recipe.training import SGD, AdamW, Muon
from modnet.store import settle
from tests.engine.toy import quiet, run, toy_job, weights

CASES: dict[str, dict[str, Any]] = {
    "adamw-ema": {"optimizer": AdamW(lr=0.01), "ema": 0.9},
    "sgd-accumulate": {"optimizer": SGD(lr=0.1), "accumulate": 2, "clip": 0.5},
    "muon-two-tracks": {"optimizer": Muon(), "tracks": 2, "ema": 0.8, "accumulate": 3},
    "last": {"optimizer": Muon(nesterov=False), "select": "last", "evaluate_every": 2},
}


CLOCKED = ("time", "images_per_second", "waiting_for_data")


class Killed(BaseException):
    """Stands for the death of the process: nothing may catch it."""


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCKED} for x in lines]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    found = Checkpoints(folder, "toy").load()
    assert found is not None
    return found.weights, found.optimizer


def killed_at(call: int, folder: Path, **arguments: Any) -> None:
    def fault(calls: int) -> None:
        if calls == call:
            raise Killed

    with pytest.raises(Killed):
        run(folder, fault=fault, **arguments)


@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_identical_from_every_step(case: str, tmp_path: Path) -> None:
    arguments = {**CASES[case], "checkpoint_every": 1, "epochs": 2}
    whole, outcome = run(tmp_path / "whole", **arguments)
    parts = arguments.get("accumulate", 1)
    for step in range(8):
        folder = tmp_path / f"killed-{step}"
        killed_at(step * parts + 1, folder, **arguments)
        job, resumed = run(folder, **arguments)
        assert same(weights(job), weights(whole))
        assert resumed.metrics == outcome.metrics
        assert resumed.history == outcome.history
        assert all(same(a, b) for a, b in zip(checkpoint(folder), checkpoint(tmp_path / "whole"), strict=True))
        assert rows(folder) == rows(tmp_path / "whole")


def test_resume_between_checkpoints_repeats_the_steps_and_their_log(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", ema=0.9)
    killed_at(7, tmp_path / "part", ema=0.9)  # in epoch 2: the checkpoint is that of epoch 1
    assert len(rows(tmp_path / "part")) == 7
    job, _ = run(tmp_path / "part", ema=0.9)
    assert same(weights(job), weights(whole))
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")


def test_killed_before_the_first_checkpoint_starts_anew_and_keeps_earlier_logs(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "metrics.jsonl").write_text('{"job": "earlier"}\n')
    killed_at(3, tmp_path / "part")
    run(tmp_path / "whole")
    run(tmp_path / "part")
    assert rows(tmp_path / "part") == [{"job": "earlier"}, *rows(tmp_path / "whole")]


def test_a_kill_between_loss_and_log_keeps_the_pending_mean(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("modnet.engine.trainer.LOGS_PER_EPOCH", 1)
    run(tmp_path / "whole", checkpoint_every=1)
    killed_at(3, tmp_path / "part", checkpoint_every=1)
    run(tmp_path / "part", checkpoint_every=1)
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    assert len([r for r in rows(tmp_path / "whole") if r["kind"] == "train"]) == 3


def test_a_finished_job_is_only_read(tmp_path: Path) -> None:
    job, outcome = run(tmp_path / "a", ema=0.9)
    log = tmp_path / "a" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"job": "later"}\n')
    before = log.read_bytes()

    def fault(_: int) -> None:
        raise AssertionError("a finished job must not run its objective")

    again, second = run(tmp_path / "a", ema=0.9, fault=fault)
    assert same(weights(again), weights(job))
    assert second == outcome
    assert log.read_bytes() == before


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from modnet.recipe.training import Muon
from tests.engine.toy import run
def fault(calls):
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
run(Path(sys.argv[1]), optimizer=Muon(), ema=0.9, checkpoint_every=1, fault=fault)
"""


def test_kill_9_of_a_process_and_another_process_give_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "part")]
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    arguments: dict[str, Any] = {"optimizer": Muon(), "ema": 0.9, "checkpoint_every": 1}
    threads = torch.get_num_threads()
    try:
        resumed, _ = run(tmp_path / "part", **arguments)
        assert torch.get_num_threads() == 1
        whole, _ = run(tmp_path / "whole", **arguments)
    finally:
        torch.set_num_threads(threads)
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_step_saves_and_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    def fault(calls: int) -> None:
        if calls == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 6 of 12.*same command again"):
        run(tmp_path / "part", fault=fault)
    assert signal.getsignal(number) is before
    job, _ = run(tmp_path / "part")
    whole, _ = run(tmp_path / "whole")
    assert same(weights(job), weights(whole))


def test_the_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def fault(calls: int) -> None:
        if calls == 6:  # raised in this thread: two that wait for another would be taken as one
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, fault=fault)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "best-track0.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named(file: str, damage: str, tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    path = tmp_path / "checkpoints/toy/last" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if damage == "remove":
        path.unlink()
    with pytest.raises(RunFailed, match=rf"{file}.*delete .*last and run the same command again"):
        run(tmp_path)


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: text.replace('"step": 4', '"step": 5')])
def test_a_changed_state_file_is_named(change: Any, tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    path = tmp_path / "checkpoints/toy/last/state.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(RunFailed, match=r"state\.json"):
        run(tmp_path)


def test_an_unfinished_temporary_folder_is_removed_and_ignored(tmp_path: Path) -> None:
    killed_at(7, tmp_path / "part")
    left = tmp_path / "part/checkpoints/toy/.last.123.tmp"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"torn")
    job, _ = run(tmp_path / "part")
    whole, _ = run(tmp_path / "whole")
    assert same(weights(job), weights(whole))
    assert not left.exists()


def test_a_death_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    last = tmp_path / "checkpoints/toy/last"
    last.rename(last.with_name("last.old"))
    settle(last)
    found = Checkpoints(tmp_path, "toy").load()
    assert found is not None
    assert found.progress.step == 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    with pytest.raises(RunFailed, match="another network"):
        run(tmp_path, tracks=2)


def test_threads_of_the_first_start_are_kept(tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    choices = tmp_path / "choices.json"
    stored = json.loads(choices.read_text())
    threads = torch.get_num_threads()
    try:
        choices.write_text(json.dumps(stored | {"threads": {"value": threads + 1, "reason": "test"}}))
        run(tmp_path)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


FORKED = """
import multiprocessing, os, signal, sys, time
from modnet.engine.interrupts import Interrupts
def wait():
    time.sleep(30)
with Interrupts() as interrupts:
    child = multiprocessing.get_context("fork").Process(target=wait)
    child.start()
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    assert interrupts.asked and child.is_alive()
    child.terminate()
    child.join(10)
    assert child.exitcode == -signal.SIGTERM, child.exitcode
"""


def test_a_forked_worker_leaves_ctrl_c_to_the_run_and_still_ends_at_sigterm() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    done = subprocess.run([sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopping after this step") == 1


FULL = """
import os, resource, sys
from pathlib import Path
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.errors import RunFailed
from tests.engine.toy import toy_job
folder, call = Path(sys.argv[1]), int(sys.argv[2])
def fault(calls):
    if calls == call:
        most = max(file.stat().st_size for file in folder.rglob("*events*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most + 40, resource.RLIM_INFINITY))
if not call:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    train(toy_job(fault=fault), folder, Reporter(folder, "toy"))
except RunFailed as error:
    print(error)
"""


@pytest.mark.parametrize("call", [0, 2])
def test_a_disk_that_is_full_for_tensorboard_is_one_paragraph(call: int, tmp_path: Path) -> None:
    if not call:
        killed_at(1, tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path), str(call)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"could not be written: File too large.*make room", done.stdout), done.stdout
    # TensorBoard writes from a thread of its own: another file of the run may meet the limit first.
    assert re.search(r"tb/toy|checkpoints/toy|metrics\.jsonl", done.stdout), done.stdout


def test_full_disk_says_so_and_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    whole, _ = run(tmp_path / "whole")
    killed_at(7, tmp_path / "part")
    folder = tmp_path / "part"

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modnet.engine.checkpoint.save_tensors", full)
        with pytest.raises(RunFailed, match="No space left on device.*make room"):
            run(folder)
    assert [p.name for p in (folder / "checkpoints/toy").iterdir() if p.is_dir()] == ["last"]
    job, _ = run(folder)
    assert same(weights(job), weights(whole))


def test_start_goes_on_from_another_jobs_last_weights_and_optimizer(tmp_path: Path) -> None:
    run(tmp_path / "first", optimizer=Muon(), select="last")
    first = Checkpoints(tmp_path / "first", "toy").load()
    assert first is not None
    job = toy_job(optimizer=Muon(), epochs=0)
    job.start = tmp_path / "first/checkpoints/toy/last"
    (tmp_path / "second").mkdir()
    train(job, tmp_path / "second", quiet(tmp_path / "second"))
    assert same(weights(job), first.weights)
    second = Checkpoints(tmp_path / "second", "toy").load()
    assert second is not None
    assert same(second.optimizer, first.optimizer)
    assert second.progress.step == 0
