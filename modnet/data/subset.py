"""Some classes of a source as a source of their own: to train on some and adapt to others."""

from __future__ import annotations

import functools
import itertools
import json

import torch

from modnet.data.large import FolderSplit
from modnet.data.sources import Description
from modnet.data.splits import Split
from modnet.errors import RequestError
from modnet.recipe.sources import ClassSubset, Source
from modnet.registry import DATA, nearest


def class_subset(params: ClassSubset) -> Description:
    """The source of the chosen classes; raises RequestError for a class that there is not, or one named twice."""
    assert isinstance(params.of, Source)
    whole: Description = DATA.get(params.of.name).resolve()(params.of)
    chosen = sorted(_number(whole.classes, which, params.of.name) for which in params.classes)
    again = next((a for a, b in itertools.pairwise(chosen) if a == b), None)
    if again is not None:
        raise RequestError(f"data {params.name!r}: class {whole.classes[again]!r} is named twice.")
    facts = json.dumps([whole.fingerprint, chosen])
    names = tuple(whole.classes[number] for number in chosen)
    return Description(names, whole.port, facts, functools.partial(_read, whole, chosen), whole.moments, whole.measured)


def _number(classes: tuple[str, ...], which: int | str, source: str) -> int:
    if isinstance(which, int):
        if not 0 <= which < len(classes):
            raise RequestError(f"{source} has no class number {which}; they are 0 to {len(classes) - 1}.")
        return which
    if which not in classes:
        near = nearest(which, list(classes))
        raise RequestError(f"{source} has no class {which!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    return classes.index(which)


def _read(whole: Description, chosen: list[int]) -> tuple[Split, Split]:
    train, test = whole.read()
    return chosen_of(train, chosen), chosen_of(test, chosen)


def chosen_of(split: Split, classes: list[int]) -> Split:
    """The images of some classes, labelled by their places in ``classes``; samples keep their numbers."""
    new = torch.full((max([*classes, *split.labels.tolist()]) + 1,), -1)
    new[classes] = torch.arange(len(classes))
    taken = split.take((new[split.labels] >= 0).nonzero()[:, 0])
    labels = new[taken.labels]
    if isinstance(taken, FolderSplit):
        return FolderSplit(taken.files, labels, taken.ids, taken.reader, taken.workers)
    return Split(taken.images, labels, taken.ids)
