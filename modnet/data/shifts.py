"""Shift suites: changed copies of a source's test images, made when they are asked for.

A suite is a deterministic function of the uint8 test images; where it needs random numbers they are keyed by a constant
seed and the sample's number. Labels never change. ``SHIFT_VERSION`` is raised with any change of a result.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modnet.data.large import FolderSplit
from modnet.data.splits import Dataset, Split
from modnet.recipe.sources import Shift

_CHUNK_PIXELS = 1 << 19  # pixels changed at once, which bounds memory
# Changed splits kept in memory by one suite: all of -c of 10,000 images of 28 x 28 are 550 MB.
_KEPT_BYTES = min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)

Change = Callable[[Tensor, Tensor], Tensor]  # uint8 images (B, C, H, W) and ids (B,) to uint8 images of that shape


@dataclass(frozen=True)
class Suite:
    """Named test splits of one source; ``parts`` makes each one when it is asked for.

    ``mask``: bool (classes,), the classes that may be predicted, where the suite does not have all of them.
    """

    name: str
    parts: Mapping[str, Split]
    dataset: Dataset
    mask: Tensor | None = None


class ChangedFolder(FolderSplit):
    """A split on disk whose images are changed as they are read."""

    change: Change

    def __init__(self, base: FolderSplit, change: Change) -> None:
        super().__init__(base.files, base.labels, base.ids, base.reader, base.workers)
        object.__setattr__(self, "change", change)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (B, C, H, W), changed, and labels (B,), in order; the last batch may be partial."""
        for ids, (images, labels) in zip(self.ids.split(size), super().batches(size), strict=True):
            yield self.change(images, ids), labels


class Parts(Mapping[str, Split]):
    """The splits that the changes make of ``base``, kept as far as memory allows."""

    def __init__(self, base: Split, changes: Mapping[str, Change]) -> None:
        self.base, self.changes = base, changes
        self._kept: OrderedDict[str, Split] = OrderedDict()

    def __getitem__(self, name: str) -> Split:
        if name not in self._kept:
            self._kept[name] = changed(self.base, self.changes[name])
            while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def _bytes(split: Split) -> int:
    return 0 if isinstance(split, FolderSplit) else split.images.numel()


def changed(split: Split, change: Change) -> Split:
    """The split with each image changed; chunks only bound memory and cannot be seen in the result."""
    if isinstance(split, FolderSplit):
        return ChangedFolder(split, change)
    rows = max(1, _CHUNK_PIXELS // split.images[0].numel()) if len(split) else 1
    pairs = zip(split.images.split(rows), split.ids.split(rows), strict=True)
    return Split(torch.cat([change(images, ids) for images, ids in pairs]), split.labels, split.ids)


def renditions(params: Shift) -> Mapping[str, Change]:
    """The changes of ``-r``: eight styles."""
    from modnet.data.renditions import RENDITIONS

    return RENDITIONS


def corruptions(params: Shift) -> Mapping[str, Change]:
    """The changes of ``-c``: 14 corruptions at 5 severities, called ``name/severity``."""
    from modnet.data.corruptions import CORRUPTIONS, SEVERITIES

    return {
        f"{name}/{severity}": functools.partial(change, severity=severity)
        for name, change in CORRUPTIONS.items()
        for severity in SEVERITIES
    }
