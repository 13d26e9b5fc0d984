"""Few-shot adaptation of a finished network: a new classifier on frozen features, or everything, by the one loop."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Port
from modnet.data import Dataset, Split
from modnet.data.episodes import QUERIES, Episode, draw, query_split
from modnet.data.loaders import TrainBatches
from modnet.data.subset import chosen_of
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Track
from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.evaluation.few_shot import classifier, features, head_accuracies, tuned_heads
from modnet.evaluation.summary import interval
from modnet.layers.initialise import initialise_linears
from modnet.methods.base import Inputs
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import FewShot, Train
from modnet.recipe.training import AdamW, Schedule


@dataclass
class Adaptation:
    """The episodes of an evaluation; every network is adapted in the same ones."""

    few: FewShot
    inputs: Inputs
    key: Key

    def row(self, network: Chain, batch: int) -> dict[str, Any]:
        """Mean top-1 over the episodes in percent, the half width of its 95 % interval, and every episode's."""
        dataset = self.inputs.dataset(self.few.data)
        if network.takes is not None and not dataset.port.fits(network.takes):
            raise RequestError(f"few_shot: the network takes {network.takes}, {self.few.data} has {dataset.port}")
        few = self.few
        episodes = draw(dataset, few.ways, few.shots, few.episodes, self.key, few.quirk_overlap)
        if few.tune == "head":
            values = self.heads(network, dataset, episodes, batch)
        else:
            values = [self.tuned(network, dataset, episode, i) for i, episode in enumerate(episodes)]
        found = interval(values)
        return {"few_shot_top1": found["mean"], "few_shot_half_width": found["half_width"], "few_shot": values}

    def heads(self, network: Chain, dataset: Dataset, episodes: list[Episode], batch: int) -> list[float]:
        """Top-1 of a new head for each episode; the network sees every image once."""
        few = self.few
        support = torch.stack([episode.support.flatten() for episode in episodes])
        query = torch.stack([episode.query.flatten() for episode in episodes])
        near = _features(network, dataset, dataset.train, support, batch)
        far = _features(network, dataset, query_split(dataset, few.quirk_overlap), query, batch)
        labels = [_labels(few, n).expand(len(episodes), -1).to(near.device) for n in (few.shots, QUERIES * few.shots)]
        heads = tuned_heads(near, labels[0], few.ways, few.epochs, few.lr, self.key.fold("heads"))
        return head_accuracies(heads, far, labels[1])

    def tuned(self, network: Chain, dataset: Dataset, episode: Episode, number: int) -> float:
        """Top-1 of the whole network after it was fine-tuned in one episode, with a new classifier."""
        few, key = self.few, self.key.fold("tuned", number)
        twin = with_new_classifier(network, few.ways, key)
        own = of_episode(dataset, episode, query_split(dataset, few.quirk_overlap))
        settings = Train(
            data=few.data,
            epochs=1,
            batch=len(own.train),
            optimizer=AdamW(lr=few.lr),
            schedule=Schedule(warmup=0),
            select="last",  # the images that are measured on choose nothing
        )
        batches = Passes(TrainBatches(own, settings.batch, key, (), self.inputs.device), few.epochs)
        track = Track(TRACK, twin, settings.optimizer, settings.schedule)

        def scores() -> dict[str, dict[str, float]]:
            return {TRACK: measure(twin, own.test, own).as_dict()}

        job = Job(TRACK, WholeNetwork(twin, 0.0), [track], batches, settings, key, scores)
        with tempfile.TemporaryDirectory(prefix="modnet-") as folder:
            outcome = train(job, Path(folder), Reporter(Path(folder), TRACK, tensorboard=False))
        return outcome.metrics[TRACK]["top1"]


@dataclass
class Passes:
    """Several epochs of one batch each, as the one epoch of a job: else each would be measured and saved."""

    batches: TrainBatches
    steps_per_epoch: int

    @property
    def batch_size(self) -> int:
        """Images in a batch, which are all there are."""
        return self.batches.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches from step ``start`` on; there is but one epoch."""
        for step in range(start, self.steps_per_epoch):
            yield from self.batches.epoch(step)


def _labels(few: FewShot, each: int) -> Tensor:
    return torch.arange(few.ways).repeat_interleave(each)


def _features(network: Chain, dataset: Dataset, split: Split, rows: Tensor, batch: int) -> Tensor:
    """Features of the rows (E, N) of a split, float32 (E, N, D); a row that several episodes drew is read once."""
    distinct, places = rows.unique(return_inverse=True)
    return features(network, split.take(distinct), dataset, batch)[places.to(rows.device)]


def with_new_classifier(network: Chain, ways: int, key: Key) -> Chain:
    """A copy on its own storage whose classifier is drawn afresh for ``ways`` classes."""
    twin = network.cloned()
    old = classifier(twin)
    with key.fold("classifier").forked():
        new = nn.Linear(old.in_features, ways)
        initialise_linears(new)
    leaf = twin.leaves[-1]
    owner, name = next((m, n) for m in leaf.modules() for n, child in m.named_children() if child is old)
    setattr(owner, name, new.to(old.weight.device))
    leaf.gives = Port.of("logits", classes=ways, per="image")
    return twin


def of_episode(dataset: Dataset, episode: Episode, queried: Split) -> Dataset:
    """An episode as a data set: its support to train on, its query images to measure on, its classes alone."""
    classes = episode.classes.tolist()
    support = chosen_of(dataset.train.take(episode.support.flatten()), classes)
    query = chosen_of(queried.take(episode.query.flatten()), classes)
    names = tuple(dataset.classes[c] for c in classes)
    return dataclasses.replace(dataset, train=support, val=query, test=query, classes=names)
