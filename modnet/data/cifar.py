"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read from their published archives without unpickling anything.

The *binary* archive, records of label bytes and 3,072 pixels, is what is downloaded. The *python* archive that
torchvision keeps is accepted as well: it holds pickles, whose opcodes are walked as data and never executed.
"""

from __future__ import annotations

import hashlib
import pickletools
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modnet.data.files import ELSEWHERE, Unreachable, data_home, download, log, mend
from modnet.data.splits import Split, check_labels
from modnet.errors import RunFailed
from modnet.store import atomic_file

URL = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """One published archive: its MD5 (from the data set's own page) and its train and test members."""

    file: str
    md5: str
    train: tuple[str, ...]
    test: str


@dataclass(frozen=True)
class Layout:
    """The two archives of a data set; ``label_bytes`` precede each binary record, the last one is the fine label."""

    title: str
    classes: int
    binary: Archive
    python: Archive
    label_bytes: int
    label_key: str


CIFAR10 = Layout(
    "CIFAR-10",
    10,
    Archive(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    ),
    Archive(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "cifar-10-batches-py/test_batch",
    ),
    label_bytes=1,
    label_key="labels",
)
CIFAR100 = Layout(
    "CIFAR-100",
    100,
    Archive(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("cifar-100-binary/train.bin",),
        "cifar-100-binary/test.bin",
    ),
    Archive(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        ("cifar-100-python/train",),
        "cifar-100-python/test",
    ),
    label_bytes=2,
    label_key="fine_labels",
)


def read(layout: Layout) -> tuple[Split, Split]:
    """The train and test sets, from an archive in the data folder or the binary one downloaded to it."""
    path, archive = _found(layout)
    members = _members(path, (*archive.train, archive.test))
    splits = []
    for names in (archive.train, (archive.test,)):
        where = f"{path} ({names[0].split('/')[-1]})"
        pairs = [parse(members[name], layout, archive is layout.binary, f"{path} ({name})") for name in names]
        images, labels = torch.cat([i for i, _ in pairs]), torch.cat([y for _, y in pairs])
        splits.append(Split.of(images, check_labels(labels, layout.classes, where)))
    return splits[0], splits[1]


def _found(layout: Layout) -> tuple[Path, Archive]:
    home = data_home()
    for archive in (layout.binary, layout.python):
        path = home / archive.file
        if path.is_file():
            _check(path, archive, mend(path))
            log.info("%s: read from %s", layout.title, path)
            return path, archive
    archive, path = layout.binary, home / layout.binary.file
    log.info("%s: not on this disk; trying %s", layout.title, URL)
    try:
        with atomic_file(path, ELSEWHERE) as temporary:
            download(URL + archive.file, temporary)
            _check(temporary, archive, "Run the same command again to download it anew.")
    except Unreachable as error:
        raise RunFailed(
            f"{layout.title} is not on this disk and could not be downloaded ({error}). By hand: "
            f"put {archive.file}, or torchvision's {layout.python.file}, into {home} (or set "
            "MODNET_DATA to its folder)."
        ) from error
    log.info("%s: came from %s; kept in %s", layout.title, URL, path)
    return path, archive


def _check(path: Path, archive: Archive, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        raise RunFailed(
            f"{path} is not the published {archive.file}: its MD5 is {found}, expected {archive.md5}. {remedy}"
        )


def _members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of the named members, read in memory: nothing is unpacked to disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            found = {m.name: archive.extractfile(m) for m in archive if m.name in names and m.isfile()}
            contents = {name: file.read() for name, file in found.items() if file is not None}
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise RunFailed(f"{path} is corrupt ({error}). {mend(path)}") from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise RunFailed(f"{path} lacks {', '.join(missing)}. {mend(path)}")
    return contents


def parse(raw: bytes, layout: Layout, binary: bool, where: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels of one member; raises RunFailed, naming ``where``, if it is malformed."""
    if not binary:
        return _from_pickle(raw, layout.label_key, where)
    record = layout.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise RunFailed(f"{where} is corrupt: {len(raw)} bytes are not a whole number of records of {record}.")
    rows = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, record).copy())
    return rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32), rows[:, layout.label_bytes - 1].long()


def _from_pickle(raw: bytes, label_key: str, where: str) -> tuple[Tensor, Tensor]:
    """The longest byte string of a pickle as pixels, and the integers listed after ``label_key`` as labels."""
    strings: list[str | bytes] = [b""]
    labels: list[int] = []
    try:
        for opcode, value, _ in pickletools.genops(raw):
            if isinstance(value, str | bytes):
                strings.append(value)
            elif "INT" in opcode.name and isinstance(value, int) and strings[-1] in (label_key, label_key.encode()):
                labels.append(value)
    except ValueError as error:
        raise RunFailed(f"{where} is corrupt ({error}).") from error
    longest = max(strings, key=len)
    pixels = longest.encode("latin-1") if isinstance(longest, str) else longest
    if not labels or len(pixels) != len(labels) * _PIXELS:
        raise RunFailed(f"{where} is corrupt: {len(labels)} labels do not go with {len(pixels)} bytes of pixels.")
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).copy())
    return images, torch.tensor(labels, dtype=torch.int64)
