"""A data set as far as it is known without its images: how many there are, and of what shape."""

from __future__ import annotations

import torch

from modnet.chain import Port
from modnet.data import port_of, text
from modnet.data.splits import Dataset, Split, held_out_of
from modnet.data.synthetic import SHOWN, TRAIN
from modnet.errors import RequestError
from modnet.recipe.sources import Photographs, Source, facts_of
from modnet.recipe.text import Text


def planned(params: Source) -> Dataset:
    """The data set of a source, its images on the meta device, with nothing looked for on the disk.

    Of a source whose facts are not known beforehand (own images) the folder is listed; raises RequestError as that
    does.
    """
    if isinstance(params, Text):
        return _planned_text(params)
    facts = facts_of(params)
    if {"size", "channels", "classes"} <= facts.keys():
        port, classes = Port.of("image", channels=facts["channels"], size=facts["size"]), int(facts["classes"])
    else:
        port, classes = port_of(params)
    count = training_images(params, classes, facts.get("pictures"))
    train, one = (_nothing(port, images) for images in (count, 1))
    names, moments = tuple(map(str, range(classes))), (0.5,) * port["channels"]
    return Dataset(params.name, train, one, one, names, port, moments, moments, "")


def _planned_text(params: Text) -> Dataset:
    if params.train_bytes is None:
        raise RequestError(
            f"data {params.name!r}: how much text it has is known only when it is read; give train_bytes"
        )
    parts = [torch.empty(n, params.length, dtype=torch.uint8, device="meta") for n in (text.windows(params), 1, 1)]
    train, val, test = (text.Windows.of(windows, windows.long()) for windows in parts)
    port = Port.of("ids", vocab=text.VOCAB, length=params.length)
    return text.TextDataset(params.name, train, val, test, text.CLASSES, port, (0.0,), (1.0,), "")


def training_images(params: Source, classes: int, pictures: int | None) -> int:
    """How many images a source trains on, if its classes are equally large; raises RequestError if nobody can know."""
    if isinstance(params, Photographs) and params.synthetic:
        return SHOWN * (TRAIN - 1)
    if params.per_class is not None:
        return params.per_class * classes
    if pictures is None:
        raise RequestError(
            f"data {params.name!r}: how many images it has is known only when they are read; give per_class, so that "
            "the stages can be planned"
        )
    kept = pictures - held_out_of(pictures, classes) * classes
    return kept if params.fraction is None else round(params.fraction * kept)


def _nothing(port: Port, count: int) -> Split:
    shape = (count, port["channels"], port["size"], port["size"])
    images = torch.empty(shape, dtype=torch.uint8, device="meta")
    labels = torch.zeros(count, dtype=torch.int64, device="meta")
    return Split(images, labels, labels)
