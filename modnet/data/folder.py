"""Own images: one folder a class, read whole into memory or, when they are many, as they are needed."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from modnet.chain import Port
from modnet.data.files import log
from modnet.data.large import File, FolderSplit, Reader
from modnet.data.layouts import SUFFIXES
from modnet.data.sources import Description
from modnet.data.splits import Split, held_out
from modnet.errors import RequestError
from modnet.recipe.sources import Folder
from modnet.store import sha256_file

_RESIDENT_BYTES = 1 << 30
_HASHED_BYTES = 256 << 20  # up to here contents are hashed, so that a copy of a folder counts as the same data
_TEST_SEED = 20_240_302
IMAGENET_MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # customary where measuring would read every image


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: for train and test the paths and the class number of each."""

    classes: tuple[str, ...]
    train: tuple[tuple[File, int], ...]
    test: tuple[tuple[File, int], ...]


def image_folder(params: Folder) -> Description:
    """The source of ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or of ``path/CLASS/*`` with a tenth as test.

    Classes are the sorted names of the training folders. Images are resized by their shorter side and cropped to the
    middle square. Raises RequestError for a folder that is missing or empty, or holds a class that training lacks.
    """
    if params.channels == 2:
        raise RequestError(f"data {params.name!r}: channels is 2; images are read with 1 (grey) or 3 (colour).")
    listing = listed(Path(params.path).expanduser(), params.name)
    port = Port.of("image", channels=params.channels, size=params.size)
    resident = held(listing, port, params.resident)
    moments = None if resident else (IMAGENET_MOMENTS if params.channels == 3 else ((0.5,), (0.25,)))
    facts = json.dumps([fingerprint(listing), params.size, params.channels, resident])
    read = functools.partial(splits, listing, Reader(params.size, params.channels), resident, params.name, params.path)
    return Description(listing.classes, port, facts, read, moments)


def listed(root: Path, name: str) -> Listing:
    """What lies in a folder; raises RequestError that says which folder is wrong and how it should look."""
    if not root.is_dir():
        raise RequestError(f"data {name!r}: there is no folder {root}. Give path: a folder with one folder a class.")
    if not (root / "train").is_dir():
        classes, files = _class_files(root, name)
        _several(classes, root, name)
        train, test = held_out(torch.tensor([y for _, y in files]), len(classes), seed=_TEST_SEED)
        return Listing(classes, tuple(files[i] for i in train), tuple(files[i] for i in test))
    if not (root / "test").is_dir():
        raise RequestError(f"data {name!r}: {root} has a folder train but none called test beside it.")
    classes, train_files = _class_files(root / "train", name)
    _several(classes, root / "train", name)
    test_classes, test_files = _class_files(root / "test", name)
    unknown = [c for c in test_classes if c not in classes]
    if unknown:
        raise RequestError(
            f"data {name!r}: {root / 'test'} has the class {unknown[0]!r}, which {root / 'train'} "
            f"lacks. Its classes are {', '.join(classes[:10])}{' …' if len(classes) > 10 else ''}."
        )
    numbers = [classes.index(c) for c in test_classes]
    return Listing(classes, tuple(train_files), tuple((path, numbers[y]) for path, y in test_files))


def _class_files(root: Path, name: str) -> tuple[tuple[str, ...], list[tuple[File, int]]]:
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise RequestError(f"data {name!r}: {root} has no folders; it needs one folder of images for each class.")
    files: list[tuple[File, int]] = []
    for number, folder in enumerate(folders):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not images:
            kinds = ", ".join(sorted(SUFFIXES))
            raise RequestError(f"data {name!r}: the class folder {folder} has no images ({kinds}).")
        files += [(path, number) for path in images]
    return tuple(f.name for f in folders), files


def _several(classes: tuple[str, ...], root: Path, name: str) -> None:
    if len(classes) < 2:
        raise RequestError(
            f"data {name!r}: {root} has only one class, {classes[0]!r}; it takes two or more to tell apart."
        )


def held(listing: Listing, port: Port, asked: bool | None) -> bool:
    """Whether the images are held in memory: as asked, else where they are small."""
    count = len(listing.train) + len(listing.test)
    return count * port["channels"] * port["size"] ** 2 <= _RESIDENT_BYTES if asked is None else asked


def fingerprint(listing: Listing) -> str:
    """A SHA-256 of the names and contents of files on the disk, or of their names, sizes and times if they are many."""
    every = [(Path(str(file)), label) for part in (listing.train, listing.test) for file, label in part]
    stats = [path.stat() for path, _ in every]
    hashed = sum(s.st_size for s in stats) <= _HASHED_BYTES
    facts: list[object] = [listing.classes, len(listing.train)]
    for (path, label), stat in zip(every, stats, strict=True):
        size, time = stat.st_size, stat.st_mtime_ns
        facts.append([path.name, label, _content(path, size, time) if hashed else [size, time]])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.lru_cache(maxsize=1 << 20)
def _content(path: Path, size: int, time: int) -> str:
    return sha256_file(path)


def splits(
    listing: Listing, reader: Reader, resident: bool, name: str, where: str, measured: Reader | None = None
) -> tuple[Split, Split]:
    """The train and test sets of a listing, read into memory if ``resident``; ``measured`` reads test."""
    made: list[Split] = []
    for part, read in ((listing.train, reader), (listing.test, measured or reader)):
        labels = torch.tensor([label for _, label in part], dtype=torch.int64)
        large = FolderSplit([file for file, _ in part], labels, torch.arange(len(part)), read)
        made.append(_held(large) if resident else large)
    place = "held in memory" if resident else "read as they are needed"
    log.info("%s: %d images in %s, %s", name, sum(map(len, made)), where, place)
    return made[0], made[1]


def read_again(listing: Listing, reader: Reader, resident: bool, split: Split) -> Split:
    """Some training images of a listing as another reader reads them; samples keep their numbers and labels."""
    files = [listing.train[sample][0] for sample in split.ids.tolist()]
    large = FolderSplit(files, split.labels, split.ids, reader)
    return _held(large) if resident else large


def _held(large: FolderSplit) -> Split:
    return Split(large.images, large.labels, large.ids)
