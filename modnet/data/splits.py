"""Splits and data sets: what every source becomes, and how parts are drawn from it.

From a source's own training images **val** is held out first (5,000 or a tenth, equally many of each class, by a
constant seed); ``per_class`` and ``fraction`` then choose a part of what is left. Both take the first images of one
seeded order per class, so that 100 of a class are among 300 of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modnet.chain import Port
from modnet.errors import RequestError, RunFailed
from modnet.randomness import Key
from modnet.recipe.sources import Source

SPLIT_VERSION = 1  # part of every data fingerprint: raise it when a split or subset of the same source changes
_VAL_SEED = 20_240_229
_VAL_MOST = 5_000


@dataclass(frozen=True)
class Split:
    """Images in memory with their labels and sample numbers.

    ``images``: uint8 (N, C, H, W). ``labels``: int64 (N,). ``ids``: int64 (N,), sample numbers in the source's own set,
    which key augmentation and shifts.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> Split:
        """A split whose samples are numbered in order."""
        return cls(images, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Split:
        """The chosen rows, in the order given."""
        return Split(self.images[rows], self.labels[rows], self.ids[rows])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (B, C, H, W) and labels (B,), in order; the last batch may be partial."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]


@dataclass(frozen=True)
class Dataset:
    """A source with its three splits; choices are made on ``val``, and ``test`` is read by evaluation alone.

    ``mean`` and ``std`` (per channel, of pixels divided by 255) belong to the source's training images before any part
    is taken, so that networks trained on different parts of one source see the same inputs.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    port: Port
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def score(self) -> str:
        """The metric that tells which weights are best."""
        return "bits_per_byte" if self.port.kind == "ids" else "top1"

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 with the training images' mean 0 and standard deviation 1."""
        scale, shift = self._affine
        return images.to(torch.float32).mul_(scale.to(images.device)).add_(shift.to(images.device))

    @functools.cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (1 / (255 * std)).float(), (-mean / std).float()


def check_labels(labels: Tensor, classes: int, where: str) -> Tensor:
    """The labels as int64; raises RunFailed naming the first one that is not in ``range(classes)``."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise RunFailed(
            f"{where}: label out of range: sample {row} has label {int(labels[row])}, but there "
            f"are {classes} classes (0 to {classes - 1})."
        )
    return labels.to(torch.int64)


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, exact (from counts), in units of 255."""
    means, stds = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(float(mean))
        stds.append(max(float(variance.sqrt()), 1 / 255))
    return tuple(means), tuple(stds)


def _by_class(labels: Tensor, classes: int, key: Key) -> list[Tensor]:
    """For each class its rows in a keyed order."""
    order = key.permutation(len(labels))
    return [order[labels[order] == c] for c in range(classes)]


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows).sort().values


def held_out(
    labels: Tensor, classes: int, most: int = _VAL_MOST, seed: int = _VAL_SEED, share: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that are held out: at most ``most`` and ``share`` of all, equally many of each class.

    A class gives at most twice that share of its images (but one if it has two or more), so that none is emptied.
    """
    quota = held_out_of(len(labels), classes, most, share)
    kept, out = [], []
    for rows in _by_class(labels, classes, Key.of(seed)):
        count = min(quota, int(len(rows) * 2 * share)) or min(1, len(rows) // 2)
        out.append(rows[:count])
        kept.append(rows[count:])
    return _joined(kept), _joined(out)


def held_out_of(count: int, classes: int, most: int = _VAL_MOST, share: float = 0.1) -> int:
    """How many images of each class are held out of ``count`` training images, if all classes are large enough."""
    return max(1, min(most, int(count * share)) // classes)


def part(labels: Tensor, classes: tuple[str, ...], params: Source) -> Tensor:
    """Rows of the part that a source's parameters choose; raises RequestError if a class has too few images."""
    if params.per_class is None and params.fraction is None:
        return torch.arange(len(labels))
    chosen = []
    for name, rows in zip(classes, _by_class(labels, len(classes), Key.of(params.subset_seed, "part")), strict=True):
        if params.per_class is not None and params.per_class > len(rows):
            raise RequestError(
                f"data {params.name!r}: per_class is {params.per_class}, but class {name!r} has only "
                f"{len(rows)} training images after val is held out. Give a smaller per_class, or a fraction."
            )
        chosen.append(rows[: params.per_class or max(1, round((params.fraction or 1.0) * len(rows)))])
    return _joined(chosen)
