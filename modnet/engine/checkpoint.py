"""Checkpoints of a training job: safetensors and JSON with hashes, complete or absent, never pickled.

``<folder>/checkpoints/<job>/last`` holds ``weights`` and ``optimizer`` (tensors ``track/parameter[/entry]``), the best
weights of each track, and ``state.json``, which names the hash of every file and is itself hashed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from modnet.errors import RunFailed
from modnet.store import (
    atomic_folder,
    atomic_write_json,
    canonical_sha256,
    load_tensors,
    read_json,
    save_tensors,
    settle,
    sha256_file,
)

FORMAT = 1
Tensors = dict[str, Tensor]


@dataclass
class Best:
    """The best validation of a track so far: epoch (counted from 1; 0: before training), score, metrics."""

    epoch: int
    score: float
    metrics: dict[str, float]


@dataclass
class Progress:
    """Where a job stands: plain data, all that a resumed run needs beside tensors.

    ``validated``: the last epoch that was validated, -1 for none. ``pending``: per track the sum of the losses since
    the last log line, and ``pending_steps`` their number. ``log_offset``: bytes of metrics.jsonl that belong to it.
    ``waiting``: those of the ``seconds`` in which a step had no batch yet. ``optimizers``: the optimizer's name by
    track.
    """

    step: int = 0
    validated: int = -1
    seconds: float = 0.0
    waiting: float = 0.0
    images: int = 0
    pending: list[float] = field(default_factory=list)
    pending_steps: int = 0
    log_offset: int = 0
    best: dict[str, Best] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizers: dict[str, str] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """Everything a job resumes from; ``best`` holds weights by track name."""

    progress: Progress
    weights: Tensors
    optimizer: Tensors
    best: dict[str, Tensors]


class Checkpoints:
    """The checkpoint folder of one job."""

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / "checkpoints" / job / "last"
        self._written_best: dict[str, int] = {}

    @property
    def remedy(self) -> str:
        """What a user does about a damaged checkpoint."""
        return f"delete {self.path} and run the same command again to train this stage from its start"

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; raises RunFailed on a full disk, the old one still there."""
        with atomic_folder(self.path) as folder:
            hashes = {
                "weights.safetensors": save_tensors(folder / "weights.safetensors", checkpoint.weights),
                "optimizer.safetensors": save_tensors(folder / "optimizer.safetensors", checkpoint.optimizer),
            }
            for track, tensors in checkpoint.best.items():
                name = best_name(track)
                hashes[name] = self._save_best(folder / name, track, checkpoint.progress.best[track], tensors)
            body = {"format": FORMAT, "files": hashes, "progress": asdict(checkpoint.progress)}
            atomic_write_json(folder / "state.json", {**body, "sha256": canonical_sha256(body)})
        self._written_best = {track: best.epoch for track, best in checkpoint.progress.best.items()}

    def _save_best(self, path: Path, track: str, best: Best, tensors: Tensors) -> str:
        """Write a track's best weights, or link the file of the previous checkpoint if they are the same."""
        previous = self.path / path.name
        if self._written_best.get(track) == best.epoch and previous.exists():
            try:
                os.link(previous, path)
            except OSError:
                shutil.copyfile(previous, path)
            return sha256_file(path)
        return save_tensors(path, tensors)

    def load(self) -> Checkpoint | None:
        """The last complete checkpoint, None if there is none; raises RunFailed if it is damaged."""
        settle(self.path)
        if not self.path.exists():
            return None
        found = read(self.path, self.remedy)
        self._written_best = {track: best.epoch for track, best in found.progress.best.items()}
        return found


def best_name(track: str) -> str:
    """The file of a track's best weights."""
    return f"best-{track}.safetensors"


def read(folder: Path, remedy: str) -> Checkpoint:
    """A checkpoint folder as it was written; raises RunFailed naming the damaged file."""
    path = folder / "state.json"
    state = read_json(path, remedy)
    body = {k: v for k, v in state.items() if k != "sha256"} if isinstance(state, dict) else None
    if body is None or state.get("sha256") != canonical_sha256(body):
        raise RunFailed(f"{path} is damaged or was changed (its own SHA-256 does not fit); {remedy}")
    if body["format"] != FORMAT:
        raise RunFailed(f"{path} has format {body['format']}, this modnet reads {FORMAT}; {remedy}")
    progress = _progress(body["progress"])
    files: Mapping[str, str] = body["files"]

    def tensors(name: str) -> Tensors:
        return load_tensors(folder / name, files[name], remedy)

    best = {track: tensors(best_name(track)) for track in progress.best}
    return Checkpoint(progress, tensors("weights.safetensors"), tensors("optimizer.safetensors"), best)


def _progress(body: Mapping[str, Any]) -> Progress:
    best = {track: Best(**values) for track, values in body["best"].items()}
    return Progress(**{**body, "best": best})


def for_track(tensors: Mapping[str, Tensor], track: str) -> Tensors:
    """The tensors of one track, without its prefix."""
    return {k[len(track) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{track}/")}


def prefixed(tensors: Mapping[str, Tensor], track: str) -> Tensors:
    """The tensors of one track under its prefix."""
    return {f"{track}/{k}": v for k, v in tensors.items()}
