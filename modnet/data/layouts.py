"""How the published picture sets lie in their archives, and what is in them when they are whole.

A layout tells of every file name whether it is a picture, and if so of which part and class. So the same few lines
serve for reading a folder where it lies and for preparing one from an archive (:mod:`modnet.data.prepare`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from modnet.data.trees import find
from modnet.data.wordnet import wnids
from modnet.errors import RequestError, RunFailed

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class Place(NamedTuple):
    """Where a picture belongs: its part (``train``, ``val``; empty where there is but one), class and file name."""

    part: str
    label: str
    file: str


Rule = tuple[str, Callable[[re.Match[str]], Place | None]]


@dataclass(frozen=True)
class Placer:
    """Says where a file belongs by the first pattern that its name's end matches; None for what is no picture.

    A pattern begins at a folder. ``listed()``: the pictures that there should be, where they are known by name.
    """

    rules: Sequence[Rule]
    listed: Callable[[], set[Place]] = set

    def __call__(self, name: str) -> Place | None:
        if is_picture(name):
            for pattern, found in self.rules:
                if match := re.search(f"(?:^|/){pattern}$", name):
                    return found(match)
        return None


@dataclass(frozen=True)
class Layout:
    """A published set.

    ``classes``: their names in the order of the labels; empty: the sorted names of the folders, ``count`` of them.
    ``pictures``: how many each part has; ``each``: how many each class of a part has, where all have equally many.
    ``archives``: MD5 of the published files by name, ``where`` they are from, ``folder`` what they unpack to.
    ``placer`` is made for a folder or archive, whose own lists it reads.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    count: int
    pictures: Mapping[str, int]
    archives: Mapping[str, str]
    where: str
    folder: str
    placer: Callable[[Path], Placer]
    each: Mapping[str, int] = field(default_factory=dict)


def is_picture(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are none."""
    file = name.rpartition("/")[2]
    return not file.startswith(".") and Path(file).suffix.lower() in SUFFIXES


def _folders(match: re.Match[str]) -> Place:
    """``PART/CLASS/FILE``, which is also the prepared layout."""
    return Place(*match.groups())


_PREPARED: Rule = (r"(train|val)/(n\d{8})/(?:images/)?([^/]+)", _folders)


# ---- Tiny-ImageNet ------------------------------------------------------------------------------


_TINY_EACH = 500  # training pictures of a class, called by their number


def _tiny(path: Path) -> Placer:
    labels = _annotations(path)

    def flat(match: re.Match[str]) -> Place:
        if match[1] not in labels:
            raise RunFailed(f"{path}: val/val_annotations.txt does not say of which class val/images/{match[1]} is.")
        return Place("val", labels[match[1]], match[1])

    def listed() -> set[Place]:
        train = {Place("train", w, f"{w}_{i}.JPEG") for w in wnids("tiny") for i in range(_TINY_EACH)}
        return train | {Place("val", label, file) for file, label in labels.items()}

    return Placer([_PREPARED, (r"val/images/([^/]+)", flat)], listed)


def _annotations(path: Path) -> dict[str, str]:
    """The class of every official val picture by its file name; empty where val is sorted into folders."""
    (raw,) = find(path, "val/val_annotations.txt")
    rows = [line.split("\t") for line in (raw or b"").decode().splitlines() if line.strip()]
    wrong = next((i for i, row in enumerate(rows, 1) if len(row) < 2), None)
    if wrong is not None:
        raise RunFailed(f"{path}: line {wrong} of val_annotations.txt is not a file name, a tab and a WordNet id.")
    return {row[0]: row[1] for row in rows}


TINY_IMAGENET = Layout(
    "tiny-imagenet",
    "Tiny-ImageNet",
    wnids("tiny"),
    200,
    {"train": 100_000, "val": 10_000},
    {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "tiny-imagenet-200",
    _tiny,
    {"train": _TINY_EACH, "val": 50},
)


# ---- ImageNet (ILSVRC 2012) -----------------------------------------------------------------------

_DEVKIT = "ILSVRC2012_devkit_t12"


def _imagenet(path: Path) -> Placer:
    labels = _val_labels(path)

    def flat(match: re.Match[str]) -> Place:
        number = int(match[2])
        if not labels:
            raise RequestError(f"{path} has the val pictures but not their labels: put {_DEVKIT}.tar.gz beside them.")
        if not 1 <= number <= len(labels):
            raise RunFailed(f"{path}: the development kit has {len(labels)} val labels, none for {match[1]}.")
        return Place("val", labels[number - 1], match[1])

    def listed() -> set[Place]:
        return {Place("val", label, f"ILSVRC2012_val_{i:08}.JPEG") for i, label in enumerate(labels, 1)}

    packed: Rule = (r"ILSVRC2012_img_train\.tar/(n\d{8})\.tar/([^/]+)", lambda m: Place("train", m[1], m[2]))
    unsorted: Rule = (r"(?:val|ILSVRC2012_img_val\.tar)/(ILSVRC2012_val_(\d{8})\.JPEG)", flat)
    return Placer([_PREPARED, packed, unsorted], listed)


def _val_labels(path: Path) -> list[str]:
    """The WordNet id of every official val picture, from the development kit; empty where there is none.

    The kit numbers classes in an order of its own, which its MATLAB file ``meta.mat`` explains.
    """
    names = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
    truth, meta = find(path, *(f"{_DEVKIT}/data/{name}" for name in names), archive=f"{_DEVKIT}.tar.gz")
    if truth is None or meta is None:
        return []
    from scipy.io import loadmat

    rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    labels = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    return [labels[int(line)] for line in truth.split()]


IMAGENET = Layout(
    "imagenet",
    "ImageNet",
    wnids("imagenet"),
    1000,
    {"train": 1_281_167, "val": 50_000},
    {
        "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
        "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
        f"{_DEVKIT}.tar.gz": "fa75699e90414af021442c21a62c3abf",
    },
    "https://image-net.org/challenges/LSVRC/2012 (after registration)",
    "ILSVRC2012",
    _imagenet,
    {"val": 50},
)


# ---- ImageNet-R, for evaluation alone ---------------------------------------------------------------

IMAGENET_R = Layout(
    "imagenet-r",
    "ImageNet-R",
    wnids("r"),
    200,
    {"": 30_000},
    {"imagenet-r.tar": "a61312130a589d0ca1a8fca1f2bd3337"},
    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    "imagenet-r",
    lambda path: Placer([(r"(n\d{8})/([^/]+)", lambda m: Place("", m[1], m[2]))]),
)


# ---- CUB-200-2011 -----------------------------------------------------------------------------------


def _cub(path: Path) -> Placer:
    parts = _cub_parts(path)

    def official(match: re.Match[str]) -> Place:
        name = f"{match[1]}/{match[2]}"
        if name not in parts:
            raise RunFailed(f"{path}: images.txt does not list images/{name}.")
        return Place(parts[name], match[1], match[2])

    def listed() -> set[Place]:
        return {Place(part, *name.split("/")) for name, part in parts.items()}

    prepared: Rule = (r"(train|val)/(\d{3}\.[^/]+)/([^/]+)", _folders)
    return Placer([prepared, (r"images/(\d{3}\.[^/]+)/([^/]+)", official)], listed)


def _cub_parts(path: Path) -> dict[str, str]:
    """The part of every picture by ``CLASS/FILE``; empty where the set is prepared."""
    images, split = find(path, "images.txt", "train_test_split.txt")
    if images is None or split is None:
        return {}
    names, train = (dict(row.split() for row in raw.decode().splitlines() if row.strip()) for raw in (images, split))
    without = next((name for number, name in names.items() if number not in train), None)
    if without is not None:
        raise RunFailed(f"{path}: train_test_split.txt does not say of which part {without} is.")
    return {name: "train" if train[number] == "1" else "val" for number, name in names.items()}


CUB = Layout(
    "cub",
    "CUB-200-2011",
    (),
    200,
    {"train": 5_994, "val": 5_794},
    {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
    "https://data.caltech.edu/records/20098",
    "CUB_200_2011",
    _cub,
)

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (TINY_IMAGENET, IMAGENET, IMAGENET_R, CUB)}
