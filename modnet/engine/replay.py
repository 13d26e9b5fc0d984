"""Stored outputs of frozen networks: a folder of memory-mapped shards, each complete or absent, never pickled.

``<home>/<id>/replay.json`` says what was stored: its ``identity`` (teacher, data, augmentation, seed, batch, dtype) and
the layout of a row; ``<id>`` is the identity's hash. ``e0002-s00040/`` holds epoch 2 from step 40 on, an array a file,
rows in the order of the epoch, and ``shard.json`` with their hashes, written last.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modnet.errors import RunFailed
from modnet.store import atomic_folder, atomic_write_json, canonical_sha256, disk_errors, read_json, sha256_file

SHARD_BYTES = 64 << 20
ELSEWHERE = "choose another place with MODNET_DATA"
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Coding:
    """How tensors are stored: ``fp32``, ``fp16``, or of logits the ``k`` largest (``top-k``)."""

    store: str
    k: int = 0

    def encode(self, name: str, rows: Tensor) -> Arrays:
        """The arrays of a tensor (B, …) by file name."""
        values = rows.detach().float().cpu()
        if self.store != "top-k":
            return {name: values.numpy().astype(np.float32 if self.store == "fp32" else np.float16)}
        top = values.log_softmax(1).topk(min(self.k, values.shape[1]), dim=1)
        return {
            f"{name}.values": top.values.numpy().astype(np.float16),
            f"{name}.indices": top.indices.numpy().astype(np.int32),
        }

    def decode(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]], classes: int) -> Tensor:
        """What :meth:`encode` stored, float32; of ``top-k`` the rest of the probability is spread evenly."""
        if self.store != "top-k":
            return torch.from_numpy(np.array(arrays[name], dtype=np.float32))
        best = torch.from_numpy(np.array(arrays[f"{name}.values"], dtype=np.float32))
        where = torch.from_numpy(np.array(arrays[f"{name}.indices"], dtype=np.int64))
        rest = (1 - best.double().exp().sum(1, keepdim=True)).clamp_min(1e-9) / max(classes - best.shape[1], 1)
        return rest.log().float().expand(-1, classes).scatter(1, where, best)


@dataclass(frozen=True)
class Layout:
    """What a row holds: shape and dtype by name, and how many steps a shard has."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    batch: int
    row_bytes: int
    steps_per_shard: int

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], coding: Coding) -> Layout:
        """The layout that a batch's outputs have; raises RunFailed if one cannot be stored so."""
        for name, x in outputs.items():
            if coding.store == "top-k" and x.ndim != 2:
                raise RunFailed(
                    f"replay: top-k holds logits alone, but {name} are features {tuple(x.shape[1:])}; "
                    "use replay: fp16 or fp32"
                )
        batch = len(next(iter(outputs.values())))
        size = sum(a.nbytes for name, x in outputs.items() for a in coding.encode(name, x).values())
        return cls(
            {name: tuple(x.shape[1:]) for name, x in outputs.items()},
            {name: str(x.dtype).removeprefix("torch.") for name, x in outputs.items()},
            batch,
            -(-size // batch),
            max(1, SHARD_BYTES // max(size, 1)),
        )

    def plain(self) -> dict[str, Any]:
        """The layout as data for JSON."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {**self.__dict__, "shapes": shapes}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Layout:
        """What :meth:`plain` gave."""
        return cls(**{**plain, "shapes": {name: tuple(shape) for name, shape in plain["shapes"].items()}})


class Replay:
    """One stored replay."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], layout: Layout) -> None:
        self.folder, self.identity, self.layout = folder, identity, layout
        self.coding = Coding(identity["store"], int(identity["k"]))

    @classmethod
    def open(cls, home: Path, identity: Mapping[str, Any]) -> Replay | None:
        """The replay of an identity, None if there is none; raises RunFailed if the folder holds another."""
        folder = home / replay_id(identity)
        if not (folder / "replay.json").is_file():
            return None
        found = cls.at(folder)
        if canonical_sha256(found.identity) != canonical_sha256(identity):
            raise RunFailed(
                f"{folder} holds outputs of another teacher, data or augmentation than its name says; {remedy(folder)}"
            )
        return found

    @classmethod
    def at(cls, folder: Path) -> Replay:
        """The replay of a folder; raises RunFailed if it cannot be read."""
        entry = read_json(folder / "replay.json", remedy(folder))
        try:
            return cls(folder, entry["identity"], Layout.read(entry["layout"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise RunFailed(f"{folder / 'replay.json'} does not describe stored outputs; {remedy(folder)}") from error

    @classmethod
    def create(cls, home: Path, identity: Mapping[str, Any], layout: Layout) -> Replay:
        """A new, empty replay."""
        folder = home / replay_id(identity)
        with disk_errors(folder, ELSEWHERE):
            folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(folder / "replay.json", {"identity": dict(identity), "layout": layout.plain()})
        return cls(folder, identity, layout)

    def shard(self, epoch: int, step: int) -> Path:
        """The folder of the shard in which a step lies."""
        size = self.layout.steps_per_shard
        return self.folder / f"e{epoch:04d}-s{step // size * size:05d}"

    def has(self, epoch: int, step: int) -> bool:
        """Whether a step is stored."""
        return (self.shard(epoch, step) / "shard.json").is_file()

    def write(self, epoch: int, step: int, parts: list[dict[str, Tensor]]) -> None:
        """Store a whole shard that begins at ``step``: the outputs of each of its steps."""
        with atomic_folder(self.shard(epoch, step)) as folder:
            hashes = {}
            encoded = [
                {file: array for name, x in part.items() for file, array in self.coding.encode(name, x).items()}
                for part in parts
            ]
            for file in encoded[0]:
                np.save(folder / f"{file}.npy", np.concatenate([part[file] for part in encoded]), allow_pickle=False)
                hashes[f"{file}.npy"] = sha256_file(folder / f"{file}.npy")
            atomic_write_json(folder / "shard.json", {"steps": len(parts), "files": hashes})

    def rows(self, epoch: int, step: int, names: list[str], rows: slice | None = None) -> dict[str, Tensor]:
        """The stored outputs of a step by name, in the dtype they had; ``rows`` of its batch, all by default."""
        path, batch = self.shard(epoch, step), self.layout.batch
        start = step % self.layout.steps_per_shard * batch
        found = {}
        for name in names:
            arrays = {file: array[start : start + batch][rows or slice(None)] for file, array in _mapped(path, name)}
            shape = self.layout.shapes[name]
            tensor = self.coding.decode(name, arrays, shape[0] if shape else 1)
            found[name] = tensor.to(getattr(torch, self.layout.dtypes[name]))
        return found

    def shards(self) -> list[Path]:
        """The folders of all complete shards, in order."""
        return sorted(path.parent for path in self.folder.glob("e*-s*/shard.json"))

    def epochs(self) -> int:
        """How many epochs are begun."""
        return len({path.name.partition("-")[0] for path in self.shards()})

    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for path in self.shards() for file in path.iterdir())

    def damaged(self) -> list[Path]:
        """Files that are missing or whose hash is not the one that was written."""
        wrong = []
        for path in self.shards():
            files: Mapping[str, str] = read_json(path / "shard.json", remedy(self.folder))["files"]
            paths = ((path / name, sha256) for name, sha256 in files.items())
            wrong += [file for file, sha256 in paths if not file.is_file() or sha256_file(file) != sha256]
        return wrong

    def delete(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder)


@functools.lru_cache(maxsize=64)
def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunFailed(f"{path} cannot be read ({error}); {remedy(path.parent.parent)}") from error
    return found


def _mapped(shard: Path, name: str) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The memory-mapped arrays of a name in a shard, by file name."""
    files = [name] if (shard / f"{name}.npy").exists() else [f"{name}.values", f"{name}.indices"]
    return [(file, _array(shard / f"{file}.npy")) for file in files]


def replay_id(identity: Mapping[str, Any]) -> str:
    """The folder name of an identity: 16 hexadecimal digits of its hash."""
    return canonical_sha256(dict(identity))[:16]


def remedy(folder: Path) -> str:
    """What a user does about damaged or strange stored outputs."""
    return f"delete it with `modnet data cache --delete {folder.name}` and run the same command again"


def replays(home: Path) -> list[Replay]:
    """All replays under a folder."""
    return [Replay.at(path.parent) for path in sorted(home.glob("*/replay.json"))]
