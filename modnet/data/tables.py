"""Published sets as tables of Hugging Face's ``datasets``: from the hub, from ``save_to_disk``, or parquet shards.

The library maps its Arrow files into memory, so that a set of any size is read picture by picture, in any order.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modnet.data.files import data_home
from modnet.data.folder import Listing
from modnet.data.layouts import Layout
from modnet.errors import RequestError, RunFailed
from modnet.recipe.sources import Pictures

_TEST = ("val", "valid", "validation")  # what the official val is called on the hub
_HASHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """A picture in a table; it is read when it is opened."""

    table: Any
    number: int
    where: str

    def __str__(self) -> str:
        return f"in row {self.number} of {self.where}"

    def open(self) -> IO[bytes]:
        """The encoded picture; one that the table only names is opened where it lies."""
        cell = self.table[self.number]["image"]
        raw = cell["bytes"]
        return io.BytesIO(raw) if raw is not None else Path(cell["path"]).open("rb")


def is_table(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``, or holds parquet shards (at its top or under ``data``)."""
    return (path / "dataset_dict.json").is_file() or bool(_shards(path))


def listed(layout: Layout, params: Pictures) -> tuple[Listing, str]:
    """The pictures of a table and a SHA-256 of what is in it.

    Raises RequestError where splits, columns or classes are not those of the set.
    """
    where = str(params.hub or params.path)
    tables = _tables(params)
    test = next((name for name in _TEST if name in tables), None)
    if test is None or "train" not in tables:
        raise RequestError(f"{where} has the splits {', '.join(tables)}; it needs train, and {' or '.join(_TEST)}.")
    digest, parts = hashlib.sha256(), []
    for part, name in (("train", "train"), ("val", test)):
        table, labels = _columns(tables[name], layout, f"{where}, split {name}")
        _check(layout, labels, f"{where}, split {name}")
        digest.update(f"{part} {labels} {_content(table)}".encode())
        parts.append(tuple((Row(table, i, f"{where}, split {name}"), y) for i, y in enumerate(labels)))
    return Listing(_classes(layout, tables["train"]), *parts), digest.hexdigest()


def _shards(path: Path) -> dict[str, list[str]]:
    """Parquet files by split, which their names begin with: ``train-00000-of-00002.parquet``."""
    files = sorted({*path.glob("*.parquet"), *path.glob("data/*.parquet")})
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(file.name.partition("-")[0].removesuffix(".parquet"), []).append(str(file))
    return found


def _tables(params: Pictures) -> Mapping[str, Any]:
    """The splits by name; raises RunFailed with the library's reason if they cannot be loaded."""
    import datasets

    cache = str(data_home() / "huggingface")  # what is loaded from the hub stays in the library's own cache
    try:
        if params.hub is not None:
            found = datasets.load_dataset(params.hub)
        else:
            path = Path(str(params.path)).expanduser()
            if (path / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(str(path))
            else:
                found = datasets.load_dataset("parquet", data_files=_shards(path), cache_dir=cache)
    except Exception as error:  # the library raises its own, its hub client's, pyarrow's and the system's
        reason = str(error).strip().split("\n")[0]
        raise RunFailed(f"cannot load {params.hub or params.path} with Hugging Face datasets: {reason}") from error
    return dict(found)


def _columns(table: Any, layout: Layout, where: str) -> tuple[Any, list[int]]:
    """The table with pictures left encoded, and its labels in the order of the set's classes."""
    import datasets

    if not {"image", "label"} <= set(table.column_names):
        raise RequestError(f"{where} has the columns {', '.join(table.column_names)}; it needs image and label.")
    named = getattr(table.features["label"], "names", None)
    labels: Sequence[int] = table["label"][:]
    if layout.classes and named and set(named) & set(layout.classes):
        unknown = sorted(set(named) - set(layout.classes))
        if unknown:
            raise RequestError(f"{where}: {unknown[0]} is no class of {layout.title}, which has {layout.count}.")
        labels = [layout.classes.index(named[label]) for label in labels]
    table = table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return table, list(labels)


def _classes(layout: Layout, table: Any) -> tuple[str, ...]:
    """The set's own names, else those of the table; without names, numbers."""
    named = getattr(table.features["label"], "names", None)
    return layout.classes or tuple(named or map(str, range(layout.count)))


def _check(layout: Layout, labels: Sequence[int], where: str) -> None:
    wrong = next((row for row, label in enumerate(labels) if not 0 <= label < layout.count), None)
    if wrong is not None:
        raise RequestError(
            f"{where}: row {wrong} has label {labels[wrong]}, but {layout.title} has {layout.count} classes."
        )
    missing = sorted(set(range(layout.count)) - set(labels))
    if missing:
        raise RequestError(f"{where} has no pictures of {len(missing)} of the {layout.count} classes.")


def _content(table: Any) -> str:
    """A hash of the encoded pictures, or of their sizes alone where they are more than 256 MiB."""
    import pyarrow.compute as pc

    raw = [pc.struct_field(chunk, "bytes") for chunk in table.with_format("arrow")[:]["image"].chunks]
    sizes = [size for chunk in raw for size in pc.fill_null(pc.binary_length(chunk), 0).to_pylist()]
    digest = hashlib.sha256(repr(sizes).encode())
    if sum(sizes) <= _HASHED_BYTES:
        for chunk in raw:
            for value in chunk:
                digest.update(value.as_py() or b"")
    return digest.hexdigest()
