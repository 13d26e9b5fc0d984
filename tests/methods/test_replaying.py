"""A replayed teacher is the live teacher, augmentation and mixing included; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from modnet import experiment
from modnet.chain import Chain
from modnet.cli.main import app
from modnet.engine.ranks import join
from modnet.engine.replay import Replay
from modnet.errors import RequestError, RunFailed
from modnet.recipe import load_recipe
from tests.ranks import in_processes

MIXED = "stages.{}.augment=[crop,mixup-cutmix]"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODNET_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "replays"


def same(left: Chain, right: Chain) -> bool:
    other = right.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in left.state_dict().items())


def elsewhere(taught: Any, folder: Path) -> Any:
    """A lab with an empty store: a stage that equals a stored one is trained all the same."""
    return type(taught)(folder, taught.recipe_file)


@pytest.mark.parametrize(
    ("stage", "chains", "settings"),
    [
        ("transfer", ["module0", "module2"], ["epochs=2", "hint=0.3", "accumulate=2"]),
        ("mimic", ["module1", "module2"], []),
        ("hinton", ["network"], []),
    ],
)
def test_an_fp32_replay_gives_the_weights_of_the_live_teacher(
    taught: Any, tmp_path: Path, stage: str, chains: list[str], settings: list[str]
) -> None:
    settings = [MIXED.format(stage), *(f"stages.{stage}.{text}" for text in settings)]
    live = taught.run(*settings, only=stage)
    lab = elsewhere(taught, tmp_path / "runs")
    replayed = lab.run(*settings, f"stages.{stage}.replay=fp32", only=stage)
    assert live.keys == replayed.keys
    assert "replay" in lab_result(replayed, stage)
    for name in chains:
        assert same(taught.chain(live, stage, name), lab.chain(replayed, stage, name))


def lab_result(inputs: Any, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = inputs.store.result(inputs.keys[stage])
    return found


def test_one_replay_serves_seeds_ablations_and_any_grouping(taught: Any, data_folder: Path) -> None:
    common = ("stages.transfer.replay={store: fp32, prefix: true}", "stages.transfer.data_seed=5")
    runs = [
        taught.run(*common, *more, only="transfer")
        for more in ([], ["stages.transfer.seed=7"], ["stages.transfer.alpha=0.9", "stages.transfer.fused=false"])
    ]
    assert len(list(data_folder.iterdir())) == 1
    facts = [lab_result(inputs, "transfer")["replay"] for inputs in runs]
    assert facts[0]["seconds"] > 0
    assert [fact["seconds"] for fact in facts[1:]] == [0.0, 0.0]
    longer = taught.run(*common, "stages.transfer.epochs=2", only="transfer")
    assert lab_result(longer, "transfer")["replay"]["seconds"] > 0
    assert len({path.name[:5] for path in next(data_folder.iterdir()).glob("e*")}) == 2


def test_a_half_precision_replay_has_a_key_of_its_own(taught: Any) -> None:
    keys = [taught.run(*more, only="teacher").keys["hinton"] for more in ([], ["stages.hinton.replay=fp16"])]
    assert keys[0] != keys[1]
    assert taught.run("stages.hinton.replay=fp32", only="teacher").keys["hinton"] == keys[0]


def test_outputs_that_are_not_the_teachers_are_refused_and_listed(taught: Any, data_folder: Path) -> None:
    taught.run("stages.hinton.replay=fp16", only="hinton")
    (folder,) = data_folder.iterdir()
    for file in folder.glob("e*/target.npy"):
        np.save(file, np.load(file) + 1)
    done = CliRunner().invoke(app, ["data", "cache", "--verify"])
    assert done.exit_code != 0
    assert f"{folder.name}  1 epochs" in done.output
    assert "damaged: " in done.output
    with pytest.raises(RunFailed, match="is not what the live networks give"):
        taught.run("stages.hinton.replay=fp16", "stages.hinton.tau=3.0", only="hinton")
    assert CliRunner().invoke(app, ["data", "cache", "--delete", folder.name]).exit_code == 0
    assert not folder.exists()
    assert CliRunner().invoke(app, ["data", "cache"]).output == f"0 in {data_folder}\n"


def test_what_cannot_be_stored_is_said(taught: Any) -> None:
    with pytest.raises(RunFailed, match="features"):
        taught.run("stages.mimic.replay={store: top-k, k: 3}", only="mimic")
    with pytest.raises(RequestError, match="no frozen outputs"):
        taught.run("stages.teacher.replay=fp32", "stages.teacher.epochs=1", only="teacher")


def test_without_room_nothing_is_written(taught: Any, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr("modnet.methods.replaying.shutil.disk_usage", lambda folder: full)
    with pytest.raises(RunFailed, match=r"need .* free\. Make room"):
        taught.run("stages.hinton.replay=fp32", only="hinton")
    assert not list(data_folder.glob("*/e*"))


def test_filling_goes_on_where_it_was_stopped(taught: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, wrote, write = (
        ("stages.hinton.replay=fp32", "stages.hinton.epochs=3"),
        list[tuple[int, int]](),
        Replay.write,
    )

    def limited(self: Replay, epoch: int, step: int, parts: Any) -> None:
        wrote.append((epoch, step))
        if len(wrote) == 2:
            raise RunFailed("a full disk")
        write(self, epoch, step, parts)

    monkeypatch.setattr(Replay, "write", limited)
    with pytest.raises(RunFailed, match="a full disk"):
        taught.run(*settings, only="hinton")
    replayed = taught.run(*settings, only="hinton")
    assert wrote == [(0, 0), (1, 0), (1, 0), (2, 0)]
    assert lab_result(replayed, "hinton")["replay"]["seconds"] > 0


def test_top_k_stores_less_and_has_a_key_of_its_own(taught: Any) -> None:
    stores = ("fp32", "{store: top-k, k: 2}", "{store: top-k, k: 3}")
    runs = [taught.run(f"stages.hinton.replay={store}", only="hinton") for store in stores]
    assert len({inputs.keys["hinton"] for inputs in runs}) == 3
    sizes = [lab_result(inputs, "hinton")["replay"]["bytes"] for inputs in runs[1:]]
    assert sizes[0] < sizes[1]
    chains = [taught.chain(inputs, "hinton") for inputs in runs]
    assert not same(chains[0], chains[1])
    assert not same(chains[1], chains[2])


def test_processes_fill_a_replay_together(taught: Any, tmp_path: Path) -> None:
    settings = ("stages.hinton.replay=fp32", "stages.hinton.epochs=3", "stages.hinton.accumulate=2")
    live = taught.run("stages.hinton.epochs=3", "stages.hinton.accumulate=2", only="hinton")
    lab = elsewhere(taught, tmp_path / "runs")
    lab.run(only="teacher")
    wrote = in_processes(2, _bring, taught.recipe_file, lab.folder, settings, "hinton")
    assert sorted(wrote) == [1, 2]
    alone = elsewhere(taught, tmp_path / "alone")
    replayed = alone.run(*settings, only="hinton")
    assert lab_result(replayed, "hinton")["replay"]["seconds"] == 0.0
    assert same(taught.chain(live, "hinton"), alone.chain(replayed, "hinton"))


def _bring(recipe: Path, runs: Path, overrides: tuple[str, ...], stage: str) -> int:
    """Bring a stage up to date in one of several processes; how many shards of a replay it wrote."""
    wrote = []
    write = Replay.write

    def counted(self: Replay, epoch: int, step: int, parts: Any) -> None:
        wrote.append((epoch, step))
        write(self, epoch, step, parts)

    Replay.write = counted  # type: ignore[method-assign]
    world = join(torch.device("cpu"))
    session = experiment.open_session(load_recipe(recipe, overrides), runs, Console(quiet=True), "cpu", world)
    experiment.bring_up_to_date(session, [stage])
    return len(wrote)
