"""Texts as bytes: files are dealt to train, val and test by their names, then cut into windows.

What a file is in does not depend on the other files, so a text that grows keeps its splits.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modnet.chain import Port
from modnet.data.sources import Description
from modnet.data.splits import Dataset, Split
from modnet.errors import RequestError, RunFailed
from modnet.recipe.text import PackageText, Text, TextFolder, TextTable

Part = Literal["train", "val", "test"]
VOCAB = 256
CLASSES = tuple(str(byte) for byte in range(VOCAB))
_TENTHS: dict[int, Part] = {0: "val", 1: "test"}  # all other tenths are train
_NOT_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class File:
    """One text: its name, by which it is dealt, and how to read it."""

    name: str
    read: Callable[[], bytes]

    @property
    def number(self) -> int:
        """What its name comes to: its part, and its place among the files of that part."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    @property
    def part(self) -> Part:
        """A tenth of all names is val, a tenth test."""
        return _TENTHS.get(self.number % 10, "train")


class Windows(Split):
    """Windows of text: uint8 (N, length), with labels int64 (N, length)."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """In order; an eighth as many as of images, as each window is many samples."""
        return super().batches(max(1, size // 8))


class TextDataset(Dataset):
    """Windows of bytes, uint8 (N, length); the label of each position is the byte after it."""

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes as ids, int64."""
        return images.long()


def stdlib_text(params: Text) -> Description:
    """The standard library of the Python that runs this, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    return _described(params, tuple(_below(root, (".py",), _NOT_LIBRARY)), str(root))


def package_text(params: PackageText) -> Description:
    """Files of an installed package; raises RequestError if it is not installed."""
    found = importlib.util.find_spec(params.package.partition(".")[0])
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise RequestError(f"data {params.name!r}: package {params.package!r} is not installed, or is a single file.")
    root = Path(places[0]).joinpath(*params.package.split(".")[1:])
    return _described(params, tuple(_below(root, params.suffixes, ("__pycache__",))), str(root))


def text_folder(params: TextFolder) -> Description:
    """Own files; raises RequestError if the folder is not there."""
    root = Path(params.path).expanduser()
    if not root.is_dir():
        raise RequestError(f"data {params.name!r}: there is no folder {root}. Give path: a folder with text files.")
    return _described(params, tuple(_below(root, params.suffixes, ())), str(root))


def text_table(params: TextTable) -> Description:
    """The rows of all splits of a Hugging Face set, dealt anew; raises RequestError for a column that is not there."""
    where = str(params.hub or params.path)
    rows: list[File] = []
    for split, table in _tables(params).items():
        if params.column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise RequestError(f"{where} has the columns {columns}, none called {params.column!r}; give column.")
        for i, text in enumerate(table[params.column]):
            rows.append(File(f"{split}/{i}", functools.partial(str(text).encode)))
    return _described(params, tuple(rows), where)


def _tables(params: TextTable) -> dict[str, Any]:
    """The splits by name; raises RunFailed with the library's reason if they cannot be loaded."""
    import datasets

    try:
        if params.hub is not None:
            return dict(datasets.load_dataset(params.hub, params.config))
        return dict(datasets.load_from_disk(str(Path(str(params.path)).expanduser())))
    except Exception as error:  # the library raises its own, its hub client's, pyarrow's and the system's
        reason = str(error).strip().split("\n")[0]
        raise RunFailed(f"cannot load {params.hub or params.path} with Hugging Face datasets: {reason}") from error


def _below(root: Path, suffixes: Iterable[str], without: Iterable[str]) -> Iterator[File]:
    """Files below a folder by their names in it; folders ``without`` are passed over."""
    ends = tuple(suffixes)
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(set(inner) - set(without))  # what is taken out here is not walked through
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(ends):
                yield File(path.relative_to(root).as_posix(), path.read_bytes)


def _described(params: Text, files: tuple[File, ...], where: str) -> Description:
    chosen = {part: _chosen(files, part, params) for part in ("train", "val", "test")}
    digest = hashlib.sha256(repr((params.length, params.train_bytes, params.held_bytes)).encode())
    for part, texts in chosen.items():
        for name, text in texts:
            digest.update(repr((part, name, hashlib.sha256(text).hexdigest())).encode())
    port = Port.of("ids", vocab=VOCAB, length=params.length)
    whole = functools.partial(_dataset, params, chosen, port, where)
    return Description(CLASSES, port, digest.hexdigest(), _unread, whole=whole)


def _unread() -> tuple[Split, Split]:
    raise NotImplementedError("a text has three sets of its own; it is read whole")


def _chosen(files: tuple[File, ...], part: str, params: Text) -> list[tuple[str, bytes]]:
    """Whole files of a part in the order of their numbers, the last one cut, until there are enough bytes."""
    most = params.train_bytes if part == "train" else params.held_bytes
    left, found = most, []
    for file in sorted((f for f in files if f.part == part), key=lambda f: f.number):
        if left is not None and left <= 0:
            break
        text = file.read()[:left]
        found.append((file.name, text))
        left = None if left is None else left - len(text)
    return found


def _dataset(
    params: Text, chosen: dict[str, list[tuple[str, bytes]]], port: Port, where: str, fingerprint: str
) -> Dataset:
    made = {part: _windows(b"".join(text for _, text in chosen[part]), params.length) for part in chosen}
    for part, split in made.items():
        if not len(split):
            raise RequestError(
                f"data {params.name!r}: {where} has too little text for {part}: {len(chosen[part])} files of it, which "
                f"give no window of {params.length} bytes. Files are dealt by their names, a tenth each to val and "
                "test: give more files, or a smaller length."
            )
    return TextDataset(
        params.name, made["train"], made["val"], made["test"], CLASSES, port, (0.0,), (1.0,), fingerprint
    )


def windows(params: Text) -> int:
    """How many windows ``train_bytes`` make, where there is as much text."""
    return max(0, ((params.train_bytes or 0) - 1) // params.length)


def _windows(text: bytes, length: int) -> Split:
    """Windows side by side over a text; the label of a position is the byte after it."""
    count = max(0, (len(text) - 1) // length)
    if not count:
        return Windows.of(torch.empty(0, length, dtype=torch.uint8), torch.empty(0, length, dtype=torch.int64))
    stream = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    images, labels = (stream[start : start + count * length].view(count, length) for start in (0, 1))
    return Windows.of(images.clone(), labels.long())
