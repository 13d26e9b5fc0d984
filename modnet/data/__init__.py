"""Data: sources, their splits, training batches and shift suites.

>>> data = load(Source(name="digits"))
>>> len(data.train), len(data.val), len(data.test)
(1297, 140, 360)
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import torch

from modnet.chain import Port
from modnet.data.collected import Collection
from modnet.data.files import data_home
from modnet.data.shift_table import SHIFT_VERSION
from modnet.data.shifts import Parts, Suite
from modnet.data.sources import Description
from modnet.data.splits import SPLIT_VERSION, Dataset, Split, held_out, moments, part
from modnet.errors import RequestError
from modnet.recipe.sources import Source, suite_of
from modnet.registry import DATA, SHIFTS


def load(params: Source) -> Dataset:
    """The data set of a source, read once per process; raises UserError if it cannot be had or is damaged."""
    return _load(params, fingerprint(params), data_home())


def fingerprint(params: Source, shift: str | None = None) -> str:
    """A SHA-256 that changes when the images, the splits or the suite ``shift`` change.

    Built-in sources answer from constants; of a folder, names, sizes and times of the files are read.
    """
    part = params.model_dump(include={"per_class", "fraction", "subset_seed"})
    collection = _collection(params, shift)
    if collection is not None:
        return hashlib.sha256(json.dumps([collection.fingerprint, shift]).encode()).hexdigest()
    facts = [_describe(params).fingerprint, SPLIT_VERSION, part]
    if shift is not None:
        facts += [shift, SHIFT_VERSION]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def port_of(params: Source) -> tuple[Port, int]:
    """The port of the source's images and its number of classes, without reading images."""
    described = _describe(params)
    return described.port, len(described.classes)


def load_suite(name: str, params: Source, shift: str | None = None, limit: int | None = None) -> Suite:
    """The test splits to evaluate on: the whole test set, or with ``shift`` ("r", "c") its shift suite.

    ``limit``: of the changed copies only the first so many images; of a collected suite as many, evenly spread.
    """
    collection = _collection(params, shift)
    if collection is not None:
        return collected_suite(name, collection, limit)
    dataset = load(params)
    if shift is not None and dataset.port.kind != "image":
        raise RequestError(f"{name!r}: shifts change images, and {params.name!r} has none; evaluate on {params.name!r}")
    if shift is None:
        return Suite(name, {"test": dataset.test}, dataset)
    return Suite(name, _parts(params, shift, limit, dataset.fingerprint), dataset)


@functools.lru_cache(maxsize=2)
def _parts(params: Source, shift: str, limit: int | None, fingerprint: str) -> Parts:
    entry, test = SHIFTS.get(shift), load(params).test
    base = test if limit is None else test.take(torch.arange(min(limit, len(test))))
    return Parts(base, entry.resolve()(entry.params.model_validate({"name": shift})))


def _collection(params: Source, shift: str | None) -> Collection | None:
    """The collected suite that a source has under this shift's name; None where the suite is computed."""
    if shift is None or (name := suite_of(params, shift)) == shift:
        return None
    collection = SHIFTS.get(name).resolve()(params)
    assert isinstance(collection, Collection)
    return collection


def collected_suite(name: str, collection: Collection, limit: int | None) -> Suite:
    """The suite of a collection: one part, and the mask of its classes."""
    dataset = collection.dataset()
    test = dataset.test
    if limit is not None and limit < len(test):  # the classes follow each other, so the first images are of one class
        test = test.take(torch.arange(limit) * len(test) // limit)
    return Suite(name, {"test": test}, dataset, collection.mask)


def _describe(params: Source) -> Description:
    described = DATA.get(params.name).resolve()(params)
    assert isinstance(described, Description)
    return described


@functools.lru_cache(maxsize=4)
def _load(params: Source, fingerprint: str, home: Path) -> Dataset:
    described = _describe(params)
    if described.whole is not None:
        return described.whole(fingerprint)
    whole, test = described.read()
    kept, out = held_out(whole.labels, len(described.classes))
    train, val = whole.take(kept), whole.take(out)
    if described.measured is not None:
        val = described.measured(val)
    mean, std = described.moments or moments(train.images)
    if params.per_class is not None or params.fraction is not None:
        train = train.take(part(train.labels, described.classes, params))
    return Dataset(params.name, train, val, test, described.classes, described.port, mean, std, fingerprint)


__all__ = ["Dataset", "Split", "Suite", "fingerprint", "load", "load_suite", "port_of"]
