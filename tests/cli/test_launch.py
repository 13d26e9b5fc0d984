"""``--nproc-per-node`` and torchrun's names are told from modnet's own words."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from modnet.cli.failures import report
from modnet.cli.launch import parted
from modnet.cli.main import main
from modnet.errors import RequestError, RunFailed


def test_words_are_parted_in_either_spelling() -> None:
    launch = ["--nproc-per-node", "2", "--rdzv_endpoint=host:1", "--nnodes", "1:2"]
    words = ["train", "smoke/kd", *launch[:2], "--threads", "1", *launch[2:], "a.b=c"]
    assert parted(words) == (
        ["train", "smoke/kd", "--threads", "1", "a.b=c"],
        ["--nproc-per-node=2", "--rdzv-endpoint=host:1", "--nnodes=1:2"],
    )


def test_torchrun_gets_its_options_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Namespace] = []
    monkeypatch.setattr("torch.distributed.run.run", given.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    words = ["train", "smoke/kd", "--nproc-per-node", "2", "--max-restarts=3", "--rdzv-id", "7"]
    assert main(words) == 0
    (asked,) = given
    assert (asked.nproc_per_node, asked.max_restarts, asked.rdzv_id) == ("2", 3, "7")
    assert (asked.module, asked.training_script, asked.training_script_args) == (True, "modnet", ["train", "smoke/kd"])


def test_only_verbs_run_in_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--nproc-per-node", "2"]) == 2
    assert "--nproc-per-node=2 starts one of train, incubate" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_torchrun_itself_starts_modnet(tmp_path: Path) -> None:
    ours = ["-m", "modnet", "train", "smoke/kd", "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *ours]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1


@pytest.mark.slow
def test_a_recipe_in_two_processes_ends_like_any(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modnet", "train", "smoke/m2mkd", "--runs", str(tmp_path), "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    wrong = subprocess.run([*command[:4], "no/such", *command[5:]], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("no/such") == 1


@pytest.mark.parametrize(("rank", "told", "waited"), [("0", "error: no such thing", []), ("1", "", [10.0])])
def test_the_first_process_tells_what_is_wrong_with_the_request(
    rank: str, told: str, waited: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("modnet.cli.failures.time.sleep", slept.append)
    assert report(RequestError("no such thing")) == 2
    assert capsys.readouterr().err.strip() == told
    assert slept == waited
    assert report(RunFailed("a full disk")) == 1
    assert f"error{' in process 1' * (rank == '1')}: a full disk" in capsys.readouterr().err
