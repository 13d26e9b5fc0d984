"""The only training loop of the project.

A job is resumed from its checkpoint whenever there is one, and goes on bit for bit as if it had not stopped: all
randomness is keyed by step, epoch and sample, so weights, optimizer state and the step number are the whole state.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from modnet.chain import Pass
from modnet.engine.batch import Batch
from modnet.engine.casting import cast_frozen
from modnet.engine.checkpoint import Best, Checkpoint, Checkpoints, Progress, for_track, prefixed, read
from modnet.engine.choices import Choice, choose, describe
from modnet.engine.compiling import compiled
from modnet.engine.faults import device_errors
from modnet.engine.interrupts import Interrupts
from modnet.engine.job import Job
from modnet.engine.memory import kept_memory
from modnet.engine.muon import Muon
from modnet.engine.outcome import Outcome
from modnet.engine.parallel import share_of
from modnet.engine.passes import in_groups
from modnet.engine.ranks import SOLO, Team, sharing
from modnet.engine.reporter import Reporter
from modnet.engine.saving import Writer, gathered
from modnet.engine.sharding import shard
from modnet.engine.tracks import LiveTrack, better, check_partition, module_device
from modnet.engine.trials import Trials
from modnet.errors import Interrupted, RunFailed
from modnet.store import atomic_write_json, read_json

CHECKPOINT_SECONDS = 60.0
MOST_STEPS_BETWEEN_LOGS = 50
LOGS_PER_EPOCH = 4


def train(job: Job, folder: Path, reporter: Reporter, team: Team = SOLO) -> Outcome:
    """Train ``job``, going on from its checkpoint under ``folder``; then the chains hold the selected weights.

    The ranks of a ``team`` call it together, share every batch, and end with the same weights.

    Raises Interrupted after Ctrl-C (state saved), RunFailed on numbers that are not finite, a damaged checkpoint, a
    full disk or too little memory, ValueError if the tracks are not exactly what the objective trains.
    """
    with Interrupts() as interrupts, kept_memory():
        return _trained(job, folder, reporter, team, interrupts)


def _trained(job: Job, folder: Path, reporter: Reporter, team: Team, interrupts: Interrupts) -> Outcome:
    """As :func:`train`; what the loop holds is freed when this returns."""
    loop = _Loop(job, folder, reporter, team)
    try:
        loop.resume()
        loop.run(interrupts)
        outcome = loop.outcome()
        reporter.finish(outcome.steps, outcome.metrics)
    finally:
        reporter.stop()
        loop.writer.wait()
    return outcome


class _Loop:
    """A job in training. ``progress.step`` counts finished optimizer steps."""

    def __init__(self, job: Job, folder: Path, reporter: Reporter, team: Team = SOLO) -> None:
        self.job, self.reporter, self.settings, self.team = job, reporter, job.settings, team
        self.batches = share_of(job.batches, team)
        self.per_epoch = job.batches.steps_per_epoch
        self.total = job.settings.epochs * self.per_epoch
        self.log_every = min(MOST_STEPS_BETWEEN_LOGS, max(1, self.per_epoch // LOGS_PER_EPOCH))
        self.checkpoints = Checkpoints(folder, job.name)
        self.device = module_device(job.objective)
        self.choices_path = folder / "choices.json"
        choices, self.known = choose(folder, job.settings, self.device, Trials(job, self.device, team.size))
        self.choices = describe(choices, self.known, self.device)
        reporter.say(check_partition(job))
        self.sharding = shard(job, team, self.device)
        for text in self.sharding.told:
            reporter.say(text)
        self.tracks = [LiveTrack(track, self.total, self.per_epoch) for track in job.tracks]
        self._obey(choices)
        self.progress = Progress(optimizers={t.name: t.optimizer_name for t in self.tracks})
        self.losses = torch.zeros(len(self.tracks), device=self.device)
        self.bad = torch.full((len(self.tracks),), -1, device=self.device)
        self.saved_at, self.saved_step = time.monotonic(), -1
        self.began = time.perf_counter()  # of the step that runs
        self.writer = Writer()
        self.learning = False  # whether the objective is in training mode

    def _obey(self, choices: dict[str, Choice]) -> None:
        self.half = choices["dtype"].value == "bf16"
        if self.half:
            cast_frozen(self.job.objective, torch.bfloat16, [track.chain for track in self.job.tracks])
        compiles = bool(choices["compile"].value) and not self.sharding.divides
        objective = compiled(self.job.objective) if compiles else self.job.objective
        self.objective = self.sharding.spread(objective)
        for track in self.tracks:
            if isinstance(track.optimizer, Muon):
                track.optimizer.dtype = getattr(torch, choices["newton_schulz"].value)

    # Where it begins

    def resume(self) -> None:
        """Take up the checkpoint if there is one, else begin (from ``job.start`` if that is given)."""
        found = self._found()
        if found is not None or not self.known:
            self.reporter.say_once(self.choices)
        if found is not None:
            self._restore(found)
        elif self.job.start is not None:
            self._start_from(self.job.start)
        # A finished job is only read: later jobs of the stage may have logged after it.
        if not self._finished():
            self._rewind_log(found)
        shown = self.settings.model_dump(mode="json", by_alias=True)
        step = self.progress.step
        self.reporter.start(self.job.name, step, self.total, self.per_epoch, shown, self.job.score)

    def _found(self) -> Checkpoint | None:
        """The checkpoint; the leader reads it first, as it may have to mend what a killed process left."""
        found = self.checkpoints.load() if self.team.leads else None
        self.team.wait()
        return found if self.team.leads else self.checkpoints.load()

    def _rewind_log(self, found: Checkpoint | None) -> None:
        """Cut ``metrics.jsonl`` back to the checkpoint, or to where this job first began."""
        path = self.checkpoints.path.with_name("begin.json")
        if found is not None:
            self.reporter.log.truncate(found.progress.log_offset)
        elif path.is_file():
            self.reporter.log.truncate(int(read_json(path, f"delete {path}")["log_offset"]))
        else:
            atomic_write_json(path, {"log_offset": self.reporter.log.end()})

    def _restore(self, found: Checkpoint) -> None:
        self.progress = found.progress
        if self.team.leads:  # sums over the ranks
            self.losses.copy_(torch.tensor(found.progress.pending or [0.0] * len(self.tracks)))
        for track in self.tracks:
            left = track.load(for_track(found.weights, track.name), for_track(found.optimizer, track.name))
            if left:
                raise RunFailed(
                    f"the checkpoint {self.checkpoints.path} is of another network than track {track.name}: "
                    f"{', '.join(left[:5])} do not fit; {self.checkpoints.remedy}"
                )
            track.take_best(found.best.get(track.name, {}))
        self.saved_step = self.progress.step
        if not self._finished():
            self.reporter.say(f"going on from step {self.progress.step} of {self.total}")

    def _start_from(self, start: Path) -> None:
        found = read(start, "run the stage that wrote it again")
        for track in self.tracks:
            weights, state = (for_track(found.weights, track.name), for_track(found.optimizer, track.name))
            if not weights:
                raise RunFailed(f"{start} holds no track {track.name!r} to go on from")
            same = found.progress.optimizers.get(track.name) == track.optimizer_name
            left = track.start_from(weights, state if same else {})
            self.reporter.say(
                f"{track.name} goes on from {start}"
                + ("" if same else ", without its optimizer state (another optimizer)")
            )
            if left:
                self.reporter.say(f"not taken over, as name or shape differ: {', '.join(sorted(set(left)))}")

    # The loop

    def run(self, interrupts: Interrupts) -> None:
        """All remaining steps and validations."""
        batches: Iterator[Batch] | None = None
        (asked,) = self.team.largest([interrupts.asked])
        while True:
            due = self._validation_due()
            if due and not asked:  # validating may take long: whoever was asked in the step that has ended counts
                (asked,) = self.team.largest([interrupts.asked])
            if asked and not self._finished():
                self._stop()
            if due:
                self._validate()
                self._save()
            if self._finished():
                return
            self.began = time.perf_counter()
            epoch, start = divmod(self.progress.step, self.per_epoch)
            if batches is None or start == 0:
                batches = self.batches.epoch(epoch, start)
            with self._device_errors():
                batch = next(batches)
            self.progress.waiting += time.perf_counter() - self.began
            # Ranks of a team stop and save at the same step, whoever was asked first.
            told = self.team.largest_soon(lambda: [interrupts.asked, self._overdue()])
            with self._device_errors():
                self._train_step(batch)
            asked, overdue = told()
            # Reading and augmentation count, or throughput would be that of the network alone.
            self.progress.seconds += time.perf_counter() - self.began
            if self._checkpoint_due(bool(overdue)):
                self._save()

    def _stop(self) -> NoReturn:
        self._save()
        self.writer.wait()
        raise Interrupted(
            f"stopped after step {self.progress.step} of {self.total}; everything is saved in "
            f"{self.checkpoints.path}. Run the same command again to go on from there."
        )

    def _train_step(self, batch: Batch) -> None:
        step = self.progress.step
        if step == 0:
            self.reporter.images(batch.x)
        if not self.learning:
            self.objective.train()
            self.learning = True
        self._backward(batch, step)
        logs = (step + 1) % self.log_every == 0 or (step + 1) % self.per_epoch == 0
        norms = self._gradient_norms() if logs else {}
        for track in self.tracks:
            track.step(step)
        self.progress.step += 1
        self.progress.images += self.job.batches.batch_size
        self.progress.pending_steps += 1
        if logs:
            self._log(norms)
        self.reporter.advance(self.progress.step, self.job.batches.batch_size)

    def _device_errors(self) -> AbstractContextManager[None]:
        last = lambda: self.checkpoints.path if self._kept() else None  # noqa: E731
        return device_errors(self.progress.step + 1, self.device, self.settings, last, self.choices_path)

    def _backward(self, batch: Batch, step: int) -> None:
        """Gradients of a batch, micro-batch by micro-batch, each weighted by its share of the samples.

        Every micro-batch has the same key: draws belong to samples, so that the division changes nothing.
        """
        key, progress = self.job.key.fold("step", step), step // self.per_epoch / self.settings.epochs
        total = torch.zeros_like(self.losses)
        parts = batch.split(self.settings.accumulate)
        for part in parts:
            # Gradients are averaged over the ranks, whose shares together are the batch.
            share = self.team.size * len(part) / self.job.batches.batch_size
            with self.sharding.unsynced(self.objective, wanted=part is not parts[-1]):
                found: dict[str, Tensor] = {}
                ctx = Pass(key, part.ids, part.extra, progress=progress)
                apart = self.objective is self.job.objective  # what is wrapped must be called as a whole
                for losses in in_groups(self.objective, part, ctx, apart, self._autocast):
                    weighted = {name: loss.float() * share for name, loss in losses.items()}
                    torch.stack(list(weighted.values())).sum().backward()
                    found |= {name: loss.detach() for name, loss in weighted.items()}
            total += torch.stack([found[track.name] for track in self.tracks]) / self.team.size
        self.sharding.average()
        self.losses += total
        # Where the first bad loss was is noted without waiting for the device.
        self.bad = torch.where((self.bad < 0) & ~total.isfinite(), step, self.bad)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)

    def _gradient_norms(self) -> dict[str, Tensor]:
        return {name: norm for track in self.tracks for name, norm in track.gradient_norms().items()}

    def _log(self, norms: dict[str, Tensor]) -> None:
        self._check_finite()
        step, names = self.progress.step, [track.name for track in self.tracks]
        losses = (self.team.summed(self.losses) / self.progress.pending_steps).tolist()
        values = {
            "loss": dict(zip(names, losses, strict=True)),
            "lr": {track.name: track.lr for track in self.tracks},
            "grad_norm": {name: float(norm) for name, norm in norms.items()},
        }
        spent = self.progress.seconds + time.perf_counter() - self.began
        waited = self.progress.waiting / spent if spent else 0.0
        self.reporter.train(step, (step - 1) // self.per_epoch + 1, values, waited)
        self.losses.zero_()
        self.progress.pending_steps = 0

    def _check_finite(self) -> None:
        """Raise RunFailed if a loss, or a weight, is not a finite number."""
        # The ranks of a team find out together: what is wrong with one may be another's experts.
        first_bad = self.team.largest(self.bad.tolist())
        spoilt = self.team.largest([not track.finite() for track in self.tracks])
        for track, bad, spoiled in zip(self.tracks, first_bad, spoilt, strict=True):
            if bad < 0 and not spoiled:
                continue
            where = f"the loss at step {bad + 1}" if bad >= 0 else f"a weight after step {self.progress.step}"
            kept = f"The last good checkpoint is {self.checkpoints.path}. " if self._kept() else ""
            raise RunFailed(
                f"{where} of track {track.name} is not a finite number (learning rate {track.lr:.3g}). {kept}"
                f"Try a smaller learning rate (optimizer.lr={track.lr / 3:.2g}), a longer schedule.warmup, "
                f"clip=1.0{', or dtype=fp32' if self.half else ''}."
            )

    # Validation and checkpoints

    def _finished(self) -> bool:
        return self.progress.step >= self.total and not self._validation_due()

    def _validation_due(self) -> bool:
        epoch, rest = divmod(self.progress.step, self.per_epoch)
        last = self.progress.step >= self.total
        if rest or epoch <= self.progress.validated or (epoch == 0 and not last):
            return False
        return last or epoch % self.settings.evaluate_every == 0

    def _validate(self) -> None:
        """Measure all tracks with the weights that would be given on, and keep the best of each."""
        self._check_finite()
        epoch = self.progress.step // self.per_epoch
        with ExitStack() as stack:
            for track in self.tracks:
                stack.enter_context(track.averaged())
            with sharing(self.team):
                metrics = self.job.validate()
            self.learning = False
            for track in self.tracks:
                found = metrics.get(track.name, {})
                if better(found, self.job.score, self.progress.best.get(track.name)):
                    self.progress.best[track.name] = Best(epoch, found[self.job.score], dict(found))
                    track.keep_best()
        self.progress.history.append({"epoch": epoch, "metrics": metrics})
        self.progress.validated = epoch
        self.reporter.validation(self.progress.step, epoch, metrics)

    def _overdue(self) -> bool:
        return time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS

    def _checkpoint_due(self, overdue: bool) -> bool:
        step, every = self.progress.step, self.settings.checkpoint_every
        if step % self.per_epoch == 0:
            return not self._validation_due()  # else the validation saves
        if every is not None:
            return step % every == 0
        return overdue

    def _save(self) -> None:
        """Copy the state and have it written while training goes on; the leader of a team writes."""
        self._check_finite()
        self.progress.pending = self.team.summed(self.losses).tolist()
        self.saved_at = time.monotonic()
        if not self.team.leads:
            if self.sharding.divides:
                self._checkpoint(self.progress)  # the leader gathers what all have
            self.saved_step = self.progress.step
            return
        self.writer.wait()
        progress = copy.deepcopy(self.progress)
        progress.log_offset = self.reporter.sync()
        found = self._checkpoint(progress)

        def write() -> None:
            self.checkpoints.save(found)
            self.saved_step = progress.step

        self.writer.start(write)

    def _checkpoint(self, progress: Progress) -> Checkpoint:
        """All that is saved, in whole tensors; empty for ranks that do not lead."""
        keep, weights, state = self.team.leads, dict[str, Tensor](), dict[str, Tensor]()
        for track in self.tracks:
            weights |= prefixed(gathered(track.weights(), keep), track.name)
            state |= prefixed(gathered(track.optimizer_state(), keep), track.name)
        best = {track.name: gathered(track.best_weights(), keep) for track in self.tracks if track.best}
        return Checkpoint(progress, weights, state, best)

    def _kept(self) -> bool:
        """Whether there is a checkpoint, once what is being written is complete."""
        self.writer.wait()
        return self.saved_step >= 0

    def outcome(self) -> Outcome:
        """Leave the selected weights in the chains and say what came out."""
        progress, best = self.progress, self.settings.select == "best"
        metrics = dict(progress.history[-1]["metrics"]) if progress.history else {}
        for track in self.tracks:
            track.give(best)
            if best and track.name in progress.best:
                metrics[track.name] = progress.best[track.name].metrics
        self.sharding.restore()
        told = (progress.seconds, progress.waiting, progress.images)
        return Outcome(progress.step, self.settings.epochs, *told, metrics, progress.best, progress.history)
