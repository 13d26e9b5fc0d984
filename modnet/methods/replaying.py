"""Replayed teachers: what frozen networks give for a sample as augmented in an epoch is computed once and stored.

A replay belongs to (frozen networks, data, augmentation and its seed, batch, dtype, form of storage). Every later
student, seed (with a common ``data_seed``) and ablation reads it instead of running teacher and meta. Batches are
made as ever: augmentation, mixup and CutMix are keyed, so that the student sees what the teacher saw (Beyer et al.
2022, "patient and consistent"; Shen and Xing 2022, FKD, store outputs likewise).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modnet.chain import Chain, describe
from modnet.data.loaders import TrainBatches, sent
from modnet.engine.batch import REPLAYED, Batch
from modnet.engine.ranks import SOLO, Team
from modnet.engine.replay import ELSEWHERE, Coding, Layout, Replay, remedy, replay_id
from modnet.errors import RequestError, RunFailed
from modnet.randomness import Key
from modnet.recipe.stages import Replaying, TrainingStage
from modnet.store import StageLock, canonical_sha256

FORMAT = 1  # raise it when the same identity comes to mean other numbers
TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "top-k": 4e-3}  # of the live outputs, relative to the largest


class Replayable(Protocol):
    """An objective whose frozen outputs have names."""

    def frozen_outputs(self, x: Tensor, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that frozen parts give for images."""
        ...

    def replayable(self, prefix: bool) -> list[str]:
        """The names of those that can be stored."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All parts."""
        ...


def frozen_hash(objective: Replayable) -> str:
    """A SHA-256 of the structure and the tensors of all frozen chains of an objective."""
    facts: list[Any] = [type(objective).__name__]
    for part in objective.modules():
        if isinstance(part, Chain) and part.leaves and all(leaf.is_frozen for leaf in part.leaves):
            facts.append(_structure(part))
            facts.append({name: _digest(tensor) for name, tensor in part.state_dict().items()})
    return canonical_sha256(facts)


def _structure(chain: Chain) -> Any:
    try:
        return describe(chain)
    except TypeError:  # a plain module cannot be written as data; its printed form tells its settings
        return repr(nn.Module.__repr__(chain))


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode() + _bytes(plain)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def identity_of(objective: Replayable, batches: TrainBatches, stage: TrainingStage, how: Replaying) -> dict[str, Any]:
    """All that stored outputs depend on, as data; epochs are counted apart."""
    train = batches.dataset.train
    return {
        "format": FORMAT,
        "frozen": frozen_hash(objective),
        "outputs": sorted(objective.replayable(how.prefix)),
        "data": batches.dataset.fingerprint,
        "samples": _digest(train.ids),
        "moments": [list(batches.dataset.mean), list(batches.dataset.std)],
        "augment": [params.model_dump(mode="json") for params in stage.augment],
        "key": batches.key.value,
        "batch": batches.batch_size,
        "repeats": batches.repeats,
        "accumulate": stage.accumulate,
        "dtype": stage.dtype,
        "device": batches.device.type,
        "store": how.store,
        "k": how.k if how.store == "top-k" else 0,
    }


@dataclass
class Filler:
    """Computes and stores what is missing of a replay, and compares what is stored with the live networks.

    The ranks of a ``team`` make one together; those that see the same folder deal its shards among themselves.
    """

    objective: Replayable
    batches: TrainBatches
    stage: TrainingStage
    how: Replaying
    say: Callable[[str], None]
    team: Team = SOLO

    def ready(self, home: Path, check: Key) -> tuple[Replay, dict[str, Any]]:
        """The replay of all epochs of the stage, and facts about it; raises RunFailed if it does not fit."""
        if not (names := self.objective.replayable(self.how.prefix)):
            more = " but what enters its modules: give `prefix: true`, or" if self.objective.replayable(True) else ";"
            raise RequestError(
                f"replay: this {self.stage.run} stage has no frozen outputs to store{more} leave replay out"
            )
        if self.stage.dtype == "auto":
            raise RequestError("replay: what is stored depends on the dtype; set dtype to fp32 or bf16 beside it")
        identity = identity_of(self.objective, self.batches, self.stage, self.how)
        home.mkdir(parents=True, exist_ok=True)
        folder = home / replay_id(identity)
        folder.mkdir(exist_ok=True)
        place, count = self.team.beside(folder)
        with self._alone(folder) if place == 0 else nullcontext():  # one of them keeps other runs out for all
            made = Replay.open(home, identity) or self._create(home, identity, names) if place == 0 else None
            self.team.wait()
            replay = made or Replay.at(folder)
            seconds = self._fill(replay, place, count)
            told = self._check(replay, check)
            self.team.wait()
        size = replay.nbytes()
        self.say(f"replays frozen outputs from {replay.folder} ({_mib(size)}); {told}")
        return replay, {"replay": {"id": replay.folder.name, "bytes": size, "seconds": seconds}}

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """No other run writes there in the body."""
        lock = StageLock(folder, self.say)
        try:
            yield
        finally:
            lock.release()

    def _create(self, home: Path, identity: Mapping[str, Any], names: list[str]) -> Replay:
        found = self._live(next(self.batches.epoch(0)))
        layout = Layout.of({name: found[name] for name in names}, Coding(self.how.store, self.how.k))
        return Replay.create(home, identity, layout)

    def _fill(self, replay: Replay, place: int, count: int) -> float:
        """Store the missing shards, of ``count`` ranks each those of its ``place``; seconds until all are there.

        Resumable: a shard is complete or absent.
        """
        size, steps = replay.layout.steps_per_shard, self.batches.steps_per_epoch
        every = [(epoch, step) for epoch in range(self.stage.epochs) for step in range(0, steps, size)]
        missing = [(epoch, step) for epoch, step in every if not replay.has(epoch, step)]
        self.team.wait()  # all have seen the same, before any is written
        began = time.perf_counter()
        if missing:
            rows = sum(min(size, steps - step) for _, step in missing) * replay.layout.batch
            told = f"{len(every) - len(missing)} shards are there already" if len(missing) < len(every) else ""
            shared = f"{count} processes share the work" if count > 1 else ""
            self._announce(replay, rows * replay.layout.row_bytes, [text for text in (told, shared) if text])
        self._write(replay, missing[place::count])
        self.team.wait()
        return time.perf_counter() - began if missing else 0.0

    def _write(self, replay: Replay, missing: list[tuple[int, int]]) -> None:
        size, steps = replay.layout.steps_per_shard, self.batches.steps_per_epoch
        for epoch, step in missing:
            stop = min(step + size, steps)
            batches = self.batches.epoch(epoch, step)
            parts = [self._chosen(self._live(next(batches)), replay) for _ in range(step, stop)]
            replay.write(epoch, step, parts)

    def _announce(self, replay: Replay, size: int, more: list[str]) -> None:
        free = shutil.disk_usage(replay.folder).free
        told = "; ".join([f"{_mib(size)} to write, {_mib(free)} free", *more])
        self.say(f"stores frozen outputs in {replay.folder}: {told}")
        if size > free:
            raise RunFailed(
                f"stored outputs need {_mib(size)}, but {replay.folder} has {_mib(free)} free. Make room, {ELSEWHERE}, "
                "or store less: replay: fp16, or {store: top-k, k: 10}"
            )

    @torch.no_grad()
    def _live(self, batch: Batch) -> dict[str, Tensor]:
        """What the networks give, micro-batch by micro-batch as in training, so that the bits are the same."""
        bf16 = self.stage.dtype == "bf16"
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=bf16):
            parts = [self.objective.frozen_outputs(part.x, {}) for part in batch.split(self.stage.accumulate)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chosen(self, found: dict[str, Tensor], replay: Replay) -> dict[str, Tensor]:
        return {name: found[name] for name in replay.layout.shapes}

    def _check(self, replay: Replay, check: Key) -> str:
        """Compare a random step with the live networks; raises RunFailed if they say something else."""
        if not self.stage.epochs:
            return "nothing is trained"
        epoch = int(check.fold("epoch").number() * self.stage.epochs)
        step = int(check.fold("step").number() * self.batches.steps_per_epoch)
        live = self._chosen(self._live(next(self.batches.epoch(epoch, step))), replay)
        coding, exact = replay.coding, True
        for name, stored in replay.rows(epoch, step, list(live)).items():
            there = _as_stored(live[name].cpu(), coding, name)
            there, stored = there.float(), stored.float()
            exact = exact and torch.equal(there, stored)
            far = float((there - stored).abs().max() / there.abs().max().clamp_min(1e-6))
            if not far <= TOLERANCE[coding.store]:
                raise RunFailed(
                    f"{replay.folder}: {name} of epoch {epoch + 1}, step {step + 1} is not what the live networks give "
                    f"(off by {far:.2g} of the largest value); {remedy(replay.folder)}"
                )
        how = "bit for bit" if exact else "up to rounding"
        return f"epoch {epoch + 1}, step {step + 1} equals the live networks {how}"


def _as_stored(live: Tensor, coding: Coding, name: str) -> Tensor:
    """Live outputs as they look once they were stored and read again."""
    return coding.decode(name, coding.encode(name, live), live.shape[1] if live.ndim > 1 else 1).to(live.dtype)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


class ReplayedBatches:
    """Training batches that bring stored outputs of frozen parts with them (an :class:`engine.batch.Batches`)."""

    def __init__(self, batches: TrainBatches, replay: Replay, names: list[str], rows: slice | None = None) -> None:
        self.batches, self.replay, self.names, self._rows = batches, replay, names, rows

    def shared(self, rows: slice) -> ReplayedBatches:
        """The same batches, of which only some rows are made and read."""
        return ReplayedBatches(self.batches.shared(rows), self.replay, self.names, rows)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.batches.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.batches.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        for step, batch in enumerate(self.batches.epoch(epoch, start), start):
            found = self.replay.rows(epoch, step, self.names, self._rows)
            stored = {REPLAYED + name: sent(x, batch.x.device) for name, x in found.items()}
            yield replace(batch, extra={**batch.extra, **stored})
