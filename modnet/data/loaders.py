"""Training batches: epoch order, augmentation and mixing, all keyed, so that any step can be given again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modnet.data.augment import Mixing, Pixels
from modnet.data.large import FolderSplit, transformed
from modnet.data.splits import Dataset, Split
from modnet.engine.batch import Batch
from modnet.errors import RequestError
from modnet.randomness import Key
from modnet.registry import AUGMENTS, Params

_CHUNK_BYTES = 1 << 20  # images augmented at once: enough to hide the cost of each call, few enough to stay in cache


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; on a GPU the copy is only asked for, so that what still computes is not waited for."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class TrainBatches:
    """The training batches of a data set (an :class:`engine.batch.Batches`).

    Epoch ``e`` goes through the training split in the order of ``key.fold("order", e)``. The last partial batch is
    dropped; a split smaller than a batch is one batch. Every draw is keyed by augmentation, epoch and sample number, so
    ``epoch(e, start)`` gives the same batches from ``start`` on, whatever went before.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        key: Key,
        augment: Sequence[Params] = (),
        device: torch.device | str = "cpu",
        repeats: int = 1,
    ) -> None:
        if not len(dataset.train):
            raise ValueError(f"data {dataset.name!r} has no training images")
        if augment and dataset.port.kind == "ids":
            raise RequestError(f"data {dataset.name!r} is text, and augmentations change images: leave `augment` out")
        self.dataset, self.key, self.device, self.repeats = dataset, key, torch.device(device), repeats
        self._batch = min(batch, len(dataset.train))
        made = _built(augment)
        self.pixels = [(name, op) for name, op in made if isinstance(op, Pixels)]
        self.mixing = [(name, op) for name, op in made if isinstance(op, Mixing)]
        self._params = tuple(augment)
        train = dataset.train
        self._train = train if isinstance(train, FolderSplit) else _moved(train, self.device)
        self._own = torch.arange(self._batch)  # places of a batch that are made here
        self._partners = 0  # of these the last ones are only mixed into others

    def shared(self, rows: slice) -> TrainBatches:
        """The same batches, of which only some rows are read, augmented and given; mixing partners are as ever."""
        own = copy.copy(self)
        places = torch.arange(self._batch)[rows]
        own._partners = len(self.mixing)
        after = (int(places[-1]) + 1 + torch.arange(own._partners)) % self._batch
        own._own = torch.cat([places, after])
        return own

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self._batch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.dataset.train) // self._batch

    def order(self, epoch: int) -> Tensor:
        """The rows of the training split in the order of an epoch, int64, without the dropped rest.

        With ``repeats`` every batch holds that many copies of its images, one run of them after another (so that
        neighbours differ), and an epoch of as many steps sees that share of the images (Hoffer et al. 2020).
        """
        order = self.key.fold("order", epoch).permutation(len(self.dataset.train))
        if self.repeats == 1:
            return order[: self.steps_per_epoch * self._batch]
        fresh = -(-self._batch // self.repeats)
        parts = order[: self.steps_per_epoch * fresh].view(self.steps_per_epoch, fresh)
        return parts.repeat(1, self.repeats)[:, : self._batch].reshape(-1)

    def draws(self, ids: Tensor) -> Tensor:
        """What numbers the draws of whole batches of samples: another number for each copy."""
        if self.repeats == 1:
            return ids
        copy = torch.arange(len(ids), device=ids.device) % self._batch // -(-self._batch // self.repeats)
        return ids * self.repeats + copy

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        order = self.order(epoch)
        draws = self.draws(self._train.ids[order.to(self._train.ids.device)])
        rows, draws = (part.view(-1, self._batch)[start:, self._own].flatten() for part in (order, draws))
        if isinstance(self._train, FolderSplit):
            samples = self._read(self._train, rows, draws, epoch)
        else:
            samples = self._augmented(self._train, rows.to(self.device), draws, epoch)
        for images, labels, ids in samples:
            yield self._mixed(self.dataset.normalise(images), labels, ids, epoch)

    def _read(
        self, split: FolderSplit, rows: Tensor, draws: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """uint8 images, labels and draws' numbers of each batch, read and transformed by the split's workers."""
        change = transformed(self._params, split.reader.size, self.key.fold("augment", "v2", epoch))
        batches, numbers = rows.split(len(self._own)), draws.split(len(self._own))
        for some, ids, images in zip(batches, numbers, split.read(batches, change, numbers), strict=True):
            yield sent(images, self.device), sent(split.labels[some], self.device), sent(ids, self.device)

    def _augmented(
        self, split: Split, rows: Tensor, draws: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """uint8 images, labels and draws' numbers of each batch; several batches are augmented at once."""
        size = len(self._own)
        chunk = max(1, _CHUNK_BYTES // (split.images[0].numel() * size)) * size
        for some, ids in zip(rows.split(chunk), draws.split(chunk), strict=True):
            images = split.images.index_select(0, some)  # on the CPU much faster than images[some]
            labels = split.labels[some]
            for name, op in self.pixels:
                images = op.apply(images, self.key.fold("augment", name, epoch), ids)
            yield from zip(*(part.split(size) for part in (images, labels, ids)), strict=True)

    def _mixed(self, x: Tensor, labels: Tensor, ids: Tensor, epoch: int) -> Batch:
        if not self.mixing:
            return Batch(x, labels, ids)
        target = torch.nn.functional.one_hot(labels, len(self.dataset.classes)).float()
        for name, op in self.mixing:
            x, target = op.apply(x, target, self.key.fold("augment", name, epoch), ids)
        mixed = Batch(x, labels, ids, target)
        return mixed.rows(slice(0, len(ids) - self._partners)) if self._partners else mixed


def _built(augment: Sequence[Params]) -> list[tuple[str, object]]:
    """Each augmentation with the name that keys its draws; one that is given twice draws twice."""
    made: list[tuple[str, object]] = []
    for params in augment:
        name = str(getattr(params, "name", ""))
        again = sum(other.partition("#")[0] == name for other, _ in made)
        made.append((f"{name}#{again}" if again else name, AUGMENTS.get(name).resolve()(params)))
    return made


def _moved(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.labels.to(device), split.ids.to(device))
