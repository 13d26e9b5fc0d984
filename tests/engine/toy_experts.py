"""A small job whose network has experts: a tiny V-MoE on random images, labelled so that it can learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modnet.recipe.routers  # noqa: F401 - registers the names
from modnet.chain import Chain, Port
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Track
from modnet.engine.outcome import Outcome
from modnet.engine.ranks import join
from modnet.engine.trainer import train
from modnet.evaluation.accuracy import measure
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.models.moduleformer import moduleformer
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import VMoE
from modnet.recipe.moduleformer import ModuleFormer
from modnet.recipe.stages import Parallel, Train
from modnet.recipe.training import SGD, AdamW, Schedule
from modnet.registry import Params
from tests.engine.toy import quiet, weights

COUNT, BATCH, CLASSES, VOCAB, LENGTH = 48, 12, 3, 5, 6
VISION: Mapping[str, Any] = {}
STEADY = AdamW(lr=0.01, eps=0.01)  # where a gradient is zero, rounding does not decide
PLAIN = {"router": "renormalised"}  # balance is not that of the whole batch where it is divided into micro-batches
ROUTER = {"name": "renormalised", "switch": 0.1, "importance": 0.1, "balance_scope": "global"}


def expert_chain(**model: Any) -> Chain:
    """Two blocks with four experts each."""
    values = {"width": 16, "heads": 2, "depths": (1, 1), "patch": 4, "experts": 4, "router": ROUTER, **model}
    with Key.of(0, "experts").forked():
        return vmoe(VMoE.model_validate(values), Port.of("image", channels=1, size=8), CLASSES)


def symbol_chain() -> Chain:
    """A block with four attention experts and two perceptrons, for windows of six symbols."""
    values = {"width": 8, "depths": (1,), "attention_hidden": 8, "attention_experts": 4, "experts": 2, "hidden": 8}
    router = {"name": "perceptron", "mutual_information": 0.1, "balance_scope": "global"}
    with Key.of(0, "symbols").forked():
        params = ModuleFormer.model_validate({**values, "router": router})
        return moduleformer(params, Port.of("ids", vocab=VOCAB, length=LENGTH), VOCAB)


class Pictures:
    """Random images whose mean tells their class: batches, a split, and its normalisation in one."""

    def __init__(self, key: Key) -> None:
        self.key, self.steps_per_epoch, self.batch_size = key, COUNT // BATCH, BATCH
        self.x, self.y = self.drawn()

    def drawn(self) -> tuple[Tensor, Tensor]:
        y = torch.arange(COUNT) % CLASSES
        return Key.of(7).normal(torch.arange(COUNT), 64).view(-1, 1, 8, 8) + y[:, None, None, None], y

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self.key.fold("order", epoch).permutation(COUNT)
        for step in range(start, self.steps_per_epoch):
            ids = order[step * BATCH : (step + 1) * BATCH]
            yield Batch(self.x[ids], self.y[ids], ids)

    def batches(self, size: int) -> Any:
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def normalise(self, images: Tensor) -> Tensor:
        return images


class Symbols(Pictures):
    """Windows of symbols that each follow from the one before."""

    def drawn(self) -> tuple[Tensor, Tensor]:
        first = torch.arange(COUNT)[:, None] % VOCAB
        line = (first + torch.arange(LENGTH + 1) * (1 + first % 2)) % VOCAB
        return line[:, :-1], line[:, 1:]


def expert_job(optimizer: Params | None = None, model: Mapping[str, Any] | None = VISION, **settings: Any) -> Job:
    """A job of ``settings.epochs`` epochs of 4 steps; ``model`` None is a ModuleFormer on symbols."""
    key = Key.of(3)
    chain = symbol_chain() if model is None else expert_chain(**model)
    values = {"epochs": 1, "schedule": Schedule(warmup=0, name="constant"), "select": "last", **settings}
    stage = Train(data="toy", model="toy", batch=BATCH, **values)
    pictures = Symbols(key) if model is None else Pictures(key)
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
