"""Ranks: who does what, and that sharing batches over two processes changes no weight by more than rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modnet.engine.parallel import share_of
from modnet.engine.ranks import SOLO, Team, dealt, join, sharing
from modnet.engine.trainer import train
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.randomness import Key
from modnet.recipe.training import SGD, AdamW, Muon
from tests.engine.toy import CLASSES, COUNT, WIDTH, ToyBatches, quiet, run, toy_chain, toy_job, weights
from tests.ranks import in_processes


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=12), st.integers(1, 12))
def test_every_job_and_every_rank_is_dealt_once(costs: list[float], ranks: int) -> None:
    hands = dealt(costs, ranks)
    assert sorted(job for jobs, _ in hands for job in jobs) == list(range(len(costs)))
    assert [rank for _, team in hands for rank in team] == list(range(ranks))
    assert all(jobs and team for jobs, team in hands) or len(costs) >= ranks
    assert all(len(team) == 1 for _, team in hands) or all(len(jobs) == 1 for jobs, _ in hands)


def test_jobs_are_dealt_by_cost_and_ranks_left_over_join_the_costliest() -> None:
    assert dealt([1.0, 5.0, 2.0, 2.0], 2) == [([1], [0]), ([0, 2, 3], [1])]
    assert dealt([1.0, 3.0], 4) == [([0], [0]), ([1], [1, 2, 3])]
    assert dealt([1.0, 3.0], 5) == [([0], [0, 1]), ([1], [2, 3, 4])]  # of equal shares, the first


@given(st.integers(0, 200), st.integers(1, 9))
def test_rows_are_shared_without_gap(count: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(count)[Team(rank, size).slice_of(count)]]
    assert rows == list(range(count))


class Points:
    """Labelled points as images, and no normalisation."""

    def __init__(self) -> None:
        ids = torch.arange(COUNT)
        self.x, self.y = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0)), ids % CLASSES

    def batches(self, size: int) -> Any:
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images


def _measured() -> Any:
    with sharing(join(torch.device("cpu")).team):
        return measure(toy_chain(), Points(), Points(), batch=7)


def _trained(folder: Path, settings: dict[str, Any]) -> Any:
    team = join(torch.device("cpu")).deal([1.0]).team
    job = toy_job(**settings)
    outcome = train(job, folder, quiet(folder / str(team.rank)), team)
    return {k: v.numpy() for k, v in weights(job).items()}, outcome.metrics


def test_evaluation_over_two_ranks_is_the_same_number() -> None:
    alone = measure(toy_chain(), Points(), Points(), batch=7)
    assert in_processes(2, _measured) == [alone, alone]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": SGD(lr=0.1), "tracks": 2},
        {"optimizer": Muon(), "accumulate": 2, "clip": 0.5, "ema": 0.9},
    ],
    ids=["sgd", "muon"],
)
def test_two_ranks_share_batches_like_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "epochs": 1}
    job, outcome = run(tmp_path / "alone", **settings)
    for name in ("0", "1"):
        (tmp_path / "both" / name).mkdir(parents=True)
    left, right = in_processes(2, _trained, tmp_path / "both", settings)
    for name, tensor in weights(job).items():
        assert torch.equal(torch.from_numpy(left[0][name]), torch.from_numpy(right[0][name]))
        assert torch.allclose(torch.from_numpy(left[0][name]), tensor, atol=1e-5)
    assert left[1].keys() == outcome.metrics.keys()
    # What two ranks saved, one process reads.
    again, second = run(tmp_path / "both", **settings)
    assert second.metrics == left[1]
    assert all(torch.equal(t, torch.from_numpy(left[0][k])) for k, t in weights(again).items())


def test_three_ranks_go_on_from_what_one_saved(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": AdamW(lr=0.01), "checkpoint_every": 1, "epochs": 2}

    def fault(call: int) -> None:
        if call == 6:
            raise KeyboardInterrupt

    folder = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        run(folder, fault=fault, **settings)
    for name in "012":
        (folder / name).mkdir()
    whole, _ = run(tmp_path / "whole", **settings)
    found = in_processes(3, _trained, folder, settings)
    for name, tensor in weights(whole).items():
        assert torch.allclose(torch.from_numpy(found[2][0][name]), tensor, atol=1e-4)


def _beside(folder: Path) -> Any:
    team = join(torch.device("cpu")).team
    own = folder / str(team.rank)
    own.mkdir()
    return team.beside(folder), team.beside(own)


def test_ranks_know_who_sees_the_same_folder(tmp_path: Path) -> None:
    assert in_processes(2, _beside, tmp_path) == [((0, 2), (0, 1)), ((1, 2), (0, 1))]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert SOLO.beside(tmp_path) == (0, 1)


def test_more_ranks_than_images_are_refused() -> None:
    batches = ToyBatches(Key.of(0))
    assert share_of(batches, SOLO) is batches
    with pytest.raises(RequestError, match="13 processes"):
        share_of(batches, Team(0, 13))
