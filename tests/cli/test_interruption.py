"""A run that is stopped or killed, and started again, ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = "smoke/m2mkd"
TIME_LIMIT = 120.0


def start(runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "modnet", "train", RECIPE, "--runs", str(runs), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(runs: Path) -> str:
    process = start(runs)
    output, _ = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0, output
    return output


def weights(runs: Path) -> dict[str, bytes]:
    """Every network and module of a run, by stage and name."""
    stages = sorted((runs / RECIPE.replace("/", "-") / "seed-0" / "stages").iterdir())
    found = {f"{s.name}/{f.name}": f.read_bytes() for s in stages for f in sorted(s.glob("*.safetensors"))}
    assert found
    return found


def logged(runs: Path) -> int:
    """Lines of metrics that all stages have written so far."""
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("store/*/metrics.jsonl"))


def interrupt(runs: Path, after_lines: int, how: signal.Signals) -> tuple[int, str]:
    """Start, send a signal once that many lines are logged, and give the exit code and what was
    printed.
    """
    process = start(runs)
    limit = time.monotonic() + TIME_LIMIT
    while logged(runs) < after_lines and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(how)
    output, _ = process.communicate(timeout=TIME_LIMIT)
    return process.returncode, output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    runs = tmp_path_factory.mktemp("undisturbed")
    finish(runs)
    return weights(runs)


def test_ctrl_c_and_kill_lose_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    code, output = interrupt(tmp_path, 4, signal.SIGINT)
    assert code == 130, output
    assert "Run the same command again" in " ".join(output.split())
    code, _ = interrupt(tmp_path, 12, signal.SIGKILL)
    assert code == -signal.SIGKILL
    finish(tmp_path)
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_again_and_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    lines, killed = 0, 0
    while killed < 8:
        lines += 5
        how = signal.SIGINT if killed % 2 else signal.SIGKILL
        code, _ = interrupt(tmp_path, lines, how)
        if code == 0:
            break
        killed += 1
    finish(tmp_path)
    assert killed >= 4
    assert weights(tmp_path) == undisturbed
