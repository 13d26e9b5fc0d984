"""A small job whose network has experts: a tiny V-MoE on random images, labelled so that it can learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import modnet.recipe.routers  # noqa: F401 - registers the names
from modnet.chain import Chain, Port
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Track
from modnet.engine.outcome import Outcome
from modnet.engine.ranks import join
from modnet.engine.trainer import train
from modnet.evaluation.accuracy import measure
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import VMoE
from modnet.recipe.stages import Parallel, Train
from modnet.recipe.training import SGD, Schedule
from modnet.registry import Params
from tests.engine.toy import quiet, weights

COUNT, BATCH, CLASSES = 48, 12, 3
ROUTER = {"name": "renormalised", "switch": 0.1, "importance": 0.1, "balance_scope": "global"}


def expert_chain(**model: Any) -> Chain:
    """Two blocks with four experts each."""
    values = {"width": 16, "heads": 2, "depths": (1, 1), "patch": 4, "experts": 4, "router": ROUTER, **model}
    with Key.of(0, "experts").forked():
        return vmoe(VMoE.model_validate(values), Port.of("image", channels=1, size=8), CLASSES)


class Pictures:
    """Random images whose mean tells their class: batches, a split, and its normalisation in one."""

    def __init__(self, key: Key) -> None:
        self.key, self.steps_per_epoch, self.batch_size = key, COUNT // BATCH, BATCH
        self.y = torch.arange(COUNT) % CLASSES
        self.x = Key.of(7).normal(torch.arange(COUNT), 64).view(-1, 1, 8, 8) + self.y[:, None, None, None]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self.key.fold("order", epoch).permutation(COUNT)
        for step in range(start, self.steps_per_epoch):
            ids = order[step * BATCH : (step + 1) * BATCH]
            yield Batch(self.x[ids], self.y[ids], ids)

    def batches(self, size: int) -> Any:
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images


def expert_job(optimizer: Params | None = None, model: dict[str, Any] | None = None, **settings: Any) -> Job:
    """A job of ``settings.epochs`` epochs of 4 steps."""
    key, chain = Key.of(3), expert_chain(**(model or {}))
    values = {"epochs": 1, "schedule": Schedule(warmup=0, name="constant"), "select": "last", **settings}
    stage = Train(data="toy", model="toy", batch=BATCH, **values)
    pictures = Pictures(key)
    track = Track(TRACK, chain, optimizer or SGD(lr=0.1), stage.schedule, stage.clip, stage.ema)

    def validate() -> dict[str, dict[str, float]]:  # three batches: more than one of two ranks has
        return {TRACK: measure(chain, pictures, pictures, batch=20).as_dict()}

    return Job("toy", WholeNetwork(chain, 0.0), [track], pictures, stage, key, validate)


def run(folder: Path, **arguments: Any) -> tuple[Job, Outcome]:
    """Train in one process; the job and its outcome."""
    folder.mkdir(exist_ok=True, parents=True)
    job = expert_job(**arguments)
    return job, train(job, folder, quiet(folder))


def shared(folder: Path, parallel: dict[str, Any], arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Train in one of several processes; all weights, and the metrics."""
    team = join(torch.device("cpu")).deal([1.0]).team
    job = expert_job(parallel=Parallel(**parallel), **arguments)
    (folder / str(team.rank)).mkdir(exist_ok=True, parents=True)
    outcome = train(job, folder, quiet(folder / str(team.rank)), team)
    return {name: tensor.numpy() for name, tensor in weights(job).items()}, outcome.metrics


def same(found: dict[str, Any], job: Job, atol: float) -> bool:
    """Whether weights of another process are those of a job."""
    own = weights(job)
    assert found.keys() == own.keys()
    return all(torch.allclose(torch.from_numpy(found[name]), tensor, atol=atol) for name, tensor in own.items())
