"""The index of a prepared set: every picture's name, and one hash of all contents.

With it a set of a million files is listed and recognised without a look at them, wherever the folder is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modnet.data.layouts import Layout
from modnet.errors import RunFailed
from modnet.store import atomic_write_json, read_json

INDEX = "index.json"


@dataclass(frozen=True)
class Index:
    """``parts``: file names by part and class. ``sha256``: of the names and contents of all of them."""

    parts: Mapping[str, Mapping[str, list[str]]]
    sha256: str

    @property
    def files(self) -> Iterator[tuple[str, str, list[str]]]:
        """Part, class and file names, part by part."""
        for part, classes in self.parts.items():
            for label, names in classes.items():
                yield part, label, names


def read_index(root: Path, layout: Layout) -> Index | None:
    """The index of a prepared folder, None if there is none; raises RunFailed if it is of another set or damaged."""
    path = root / INDEX
    if not path.is_file():
        return None
    remedy = f"prepare it again: modnet data prepare {layout.name} --from {root} --to {root}"
    found = read_json(path, remedy)
    if not isinstance(found, dict) or not {"set", "parts", "sha256"} <= found.keys():
        raise RunFailed(f"{path} is no index that modnet wrote; {remedy}")
    if found["set"] != layout.name:
        raise RunFailed(f"{root} holds {found['set']}, not {layout.name}.")
    return Index(found["parts"], found["sha256"])


def write_index(root: Path, layout: Layout, index: Index) -> None:
    """Write the index, which makes the folder a prepared one."""
    atomic_write_json(root / INDEX, {"set": layout.name, "sha256": index.sha256, "parts": index.parts})
