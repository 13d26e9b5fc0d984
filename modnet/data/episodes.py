"""Few-shot episodes: some classes, a few training images of each, and others to measure on; all drawn by a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modnet.data.splits import Dataset, Split
from modnet.errors import RequestError
from modnet.randomness import Key

QUERIES = 3  # times as many images are measured on as trained on, as in the reference


@dataclass(frozen=True)
class Episode:
    """``classes``: numbers of the drawn classes, ascending, which are the labels 0 … ways - 1 of the episode.

    ``support``: rows of the training split, (ways, shots). ``query``: rows of the split that is measured on,
    (ways, 3 · shots).
    """

    classes: Tensor
    support: Tensor
    query: Tensor


def draw(dataset: Dataset, ways: int, shots: int, count: int, key: Key, overlap: bool = False) -> list[Episode]:
    """Episodes of a data set, each of which depends on the key and its own number alone.

    Query images are those of the test split, which training never saw. With ``overlap`` they are training images, of
    which the first ``shots`` are the support, as in the reference code. Classes without any image are never drawn.
    Raises RequestError if another has too few.
    """
    queried = query_split(dataset, overlap)
    train, query = _rows(dataset.train, dataset), _rows(queried, dataset)
    shown = torch.tensor([c for c in range(len(dataset.classes)) if len(train[c]) or len(query[c])])
    if ways > len(shown):
        raise RequestError(f"few_shot: {ways} ways, but {dataset.name!r} has {len(shown)} classes.")
    _enough(dataset, train, shown.tolist(), QUERIES * shots if overlap else shots, "training")
    _enough(dataset, query, shown.tolist(), QUERIES * shots, "training" if overlap else "test")
    episodes = []
    for number in range(count):
        own = key.fold("episode", number)
        classes = shown[own.fold("classes").permutation(len(shown))[:ways]].sort().values
        support = torch.stack([_some(train[c], shots, own.fold("support", c)) for c in classes.tolist()])
        purpose = "support" if overlap else "query"
        asked = torch.stack([_some(query[c], QUERIES * shots, own.fold(purpose, c)) for c in classes.tolist()])
        episodes.append(Episode(classes, support, asked))
    return episodes


def query_split(dataset: Dataset, overlap: bool) -> Split:
    """The split that query rows count in."""
    return dataset.train if overlap else dataset.test


def _rows(split: Split, dataset: Dataset) -> list[Tensor]:
    return [(split.labels == c).nonzero()[:, 0] for c in range(len(dataset.classes))]


def _some(rows: Tensor, count: int, key: Key) -> Tensor:
    return rows[key.permutation(len(rows))[:count]]


def _enough(dataset: Dataset, rows: Sequence[Tensor], shown: Sequence[int], needed: int, what: str) -> None:
    few = next((c for c, some in enumerate(rows) if len(some) < needed and c in shown), None)
    if few is not None:
        raise RequestError(
            f"few_shot: an episode needs {needed} {what} images of a class, but {dataset.name!r} has only "
            f"{len(rows[few])} of {dataset.classes[few]!r}; give fewer shots."
        )
