"""Loggers, display and the reporter that groups them."""

from __future__ import annotations

import io
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from modnet.engine.display import Display, Status
from modnet.engine.loggers import MetricsLog, merge_logs, own_log, sheet
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.errors import RunFailed
from tests.engine.toy import toy_job


def test_logs_of_jobs_are_merged_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", own_log("module1"), own_log("module0")):
        MetricsLog(tmp_path / name).write({"job": name})
    merge_logs(tmp_path)
    rows = [json.loads(line)["job"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == ["metrics.jsonl", "metrics-module0.jsonl", "metrics-module1.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_log_is_cut_back_to_an_offset(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.end() == log.sync() == 0
    log.write({"a": 1})
    offset = log.sync()
    log.write({"a": 2})
    log.truncate(offset)
    log.truncate(offset + 100)
    assert log.path.read_text() == '{"a": 1}\n'


def test_rows_say_loss_rate_gradient_and_validation_by_track(tmp_path: Path) -> None:
    train(toy_job(epochs=1), tmp_path, Reporter(tmp_path, "toy", tensorboard=False))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = rows[0]
    assert (first["job"], first["kind"], first["step"], first["epoch"]) == ("toy", "train", 1, 1)
    assert set(first["grad_norm"]) == {"track0/0", "track0/1"}
    assert first["lr"] == {"track0": pytest.approx(0.005)}
    assert rows[-1]["kind"] == "val"
    assert set(rows[-1]["metrics"]["track0"]) == {"top1", "loss"}


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path: Path, monkeypatch: Any) -> None:
    for name, lines in (("often", 4), ("seldom", 1)):
        monkeypatch.setattr("modnet.engine.trainer.LOGS_PER_EPOCH", lines)
        (tmp_path / name).mkdir()
        train(toy_job(epochs=1), tmp_path / name, Reporter(tmp_path / name, "toy", tensorboard=False))
    often, seldom = (
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines() if "loss" in x]
        for n in ("often", "seldom")
    )
    mean = sum(row["loss"]["track0"] for row in often[:4]) / 4
    assert seldom[0]["loss"]["track0"] == pytest.approx(mean, rel=1e-5)


def test_images_are_shown_as_the_data_was() -> None:
    natural = torch.rand(3, 1, 4, 4)
    shown = sheet((natural - 0.3) / 0.5, (0.3,), (0.5,))
    assert shown is not None
    torch.testing.assert_close(shown, natural)
    unknown = sheet(torch.randn(40, 3, 4, 4), None, None)
    assert unknown is not None
    assert (len(unknown), float(unknown.min()), float(unknown.max())) == (32, 0.0, 1.0)
    assert sheet(torch.randn(3, 8), None, None) is None


def test_stop_hides_no_error_behind_that_of_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    reporter = Reporter(tmp_path, "toy")

    def fault(calls: int) -> None:
        if calls == 2:
            assert reporter._board is not None
            monkeypatch.setattr(reporter._board._writer, "close", full)
            raise RunFailed("why it ended")

    with pytest.raises(RunFailed, match="why it ended"):
        train(toy_job(fault=fault), tmp_path, reporter)


@pytest.mark.parametrize("act", ["truncate", "sync"])
def test_a_log_on_a_full_disk_is_a_failed_run(act: str, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"a": 1})
    monkeypatch.setattr("os.truncate", full)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        log.truncate(0) if act == "truncate" else log.sync()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_scalars_settings_and_survives_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def fault(calls: int) -> None:
        if calls == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy_job(fault=fault), tmp_path, Reporter(tmp_path, "toy"))
    train(toy_job(), tmp_path, Reporter(tmp_path, "toy"))
    events = EventAccumulator(str(tmp_path / "tb" / "toy"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/track0", "lr/track0", "grad_norm/track0/0", "val/track0/top1"} <= set(tags["scalars"])
    assert tags["tensors"][0] == "settings/text_summary"
    assert events.Scalars("final/track0/top1")[0].step == 12
    assert not [path for path in (tmp_path / "tb" / "toy").iterdir() if path.is_dir()]
    written = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(written["_hparams_/session_start_info"]).session_start_info
    assert "_hparams_/session_end_info" in written
    assert start.hparams["optimizer.name"].string_value == "muon"
    assert start.hparams["batch"].number_value == 12
    assert [e.step for e in events.Scalars("loss/track0")] == list(range(1, 13))
    assert [e.step for e in events.Scalars("val/track0/top1")] == [4, 8, 12]


def shown(width: int, terminal: bool, status: Status, updates: int = 3) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    display = Display(console, status)
    for _ in range(updates):
        status.step += 1
        status.images += 128
        display.update()
    display.close()
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_fits_on_one_line(width: int, monkeypatch: Any) -> None:
    ticks = count()
    monkeypatch.setattr("modnet.engine.display.time.monotonic", lambda: 0.01 * next(ticks))
    status = Status("modules/module-3", 9_997, 20_000, 390, loss=12.345, val=99.99)
    text = shown(width, True, status).replace("\r", "\n")
    lines = [line for line in text.split("\n") if "epoch" in line]
    assert lines
    last = lines[-1].split("\x1b[2K")[-1]
    assert len(last) <= width
    for part in ("modules/module-3", "epoch 26/51", "img/s", "loss 12.345", "val 99.99", "50%", " 0:0"):
        assert part in last, last


def test_without_a_terminal_lines_are_few_and_plain(monkeypatch: Any) -> None:
    now = iter([0.0] + [t / 2 for t in range(200)])
    monkeypatch.setattr("modnet.engine.display.time.monotonic", lambda: next(now))
    monkeypatch.setattr("modnet.engine.display.PLAIN_EVERY", 5.0)
    text = shown(80, False, Status("meta", 0, 60, 10, loss=1.0), updates=40)
    lines = text.splitlines()
    assert 2 <= len(lines) <= 8
    assert lines[0].startswith("meta  step ")
    assert "\x1b" not in text


def test_no_console_is_silent_and_no_steps_are_no_bar(tmp_path: Path, capsys: Any) -> None:
    train(toy_job(epochs=0), tmp_path, Reporter(tmp_path, "toy"))
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "tb").exists()
