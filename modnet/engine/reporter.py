"""One place to report to: the console, ``metrics.jsonl`` and TensorBoard of a stage folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from torch import Tensor

from modnet.engine.display import Display, Status
from modnet.engine.loggers import LOG, MetricsLog, TensorBoard, sheet


class Reporter:
    """Reports the jobs of one stage; ``mean`` and ``std`` of the data make the sample images look natural.

    ``log`` names the file of metrics. ``console`` None is silent; ``tensorboard`` False writes no event files. ``told``
    holds what was said once already; reporters that share it do not repeat each other.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        console: Console | None = None,
        *,
        tensorboard: bool = True,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        told: set[str] | None = None,
        log: str = LOG,
    ) -> None:
        self.folder, self.title, self.console = folder, title, console
        self.mean, self.std, self._wants_tensorboard = mean, std, tensorboard
        self.log = MetricsLog(folder / log)
        self._told = told if told is not None else set()
        self._board: TensorBoard | None = None
        self._display: Display | None = None
        self._job = ""
        self._score = ""
        self._settings: Mapping[str, Any] = {}

    def say(self, text: str) -> None:
        """Print one message."""
        if self.console is not None:
            self.console.print(
                f"{self.title}: {text}", markup=False, highlight=False, soft_wrap=not self.console.is_terminal
            )

    def say_once(self, text: str) -> None:
        """Print a message that holds for several stages, the first time only."""
        if text not in self._told:
            self._told.add(text)
            self.say(text)

    def start(self, job: str, step: int, total: int, per_epoch: int, settings: Mapping[str, Any], score: str) -> None:
        """Begin or go on with a job at ``step`` of ``total``; TensorBoard forgets what it has from there on."""
        self._job, self._score, self._settings = job, score, settings
        console = self.console if step < total else None
        self._display = Display(console, Status(self.title, step, total, per_epoch))
        if self._wants_tensorboard and step < total:
            self._board = TensorBoard(self.folder / "tb" / job, purge_step=step + 1)
            if not step:
                self._board.text("settings", json.dumps(settings, indent=1, default=str))

    def images(self, x: Tensor) -> None:
        """Show the first batch's images, as augmented."""
        images = sheet(x, self.mean, self.std) if self._board is not None else None
        if self._board is not None and images is not None:
            self._board.images(images)

    def advance(self, step: int, images: int) -> None:
        """A step is done that saw this many images; reads no tensor."""
        if self._display is not None:
            self._display.status.step = step
            self._display.status.images += images
            self._display.tick()

    def train(self, step: int, epoch: int, values: Mapping[str, Mapping[str, float]], waited: float = 0.0) -> None:
        """Log ``loss``, ``lr`` and ``grad_norm`` by track after ``step`` steps, in epoch ``epoch`` (from 1).

        ``waited``: the share of the training time so far in which steps waited for their batches.
        """
        speed = self._display.images_per_second() if self._display is not None else 0.0
        row = {"job": self._job, "kind": "train", "step": step, "epoch": epoch, **values}
        pace = {"images_per_second": round(speed, 1), "waiting_for_data": round(waited, 4)}
        self.log.write({**row, **pace, "time": round(time.time(), 3)})
        if self._board is not None:
            self._board.scalars({**values, **pace}, step)
        if self._display is not None:
            self._display.status.loss = fmean(values["loss"].values())
            self._display.status.waited = waited

    def validation(self, step: int, epoch: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Log a validation by track."""
        row = {"job": self._job, "kind": "val", "step": step, "epoch": epoch, "metrics": metrics}
        self.log.write({**row, "time": round(time.time(), 3)})
        if self._board is not None:
            self._board.scalars(metrics, step, "val")
        scores = [m[self._score] for m in metrics.values() if self._score in m]
        if self._display is not None and scores:
            self._display.status.val = fmean(scores)
            self._display.update()

    def sync(self) -> int:
        """Flush everything; the offset of ``metrics.jsonl`` for the checkpoint."""
        if self._board is not None:
            self._board.flush()
        return self.log.sync()

    def finish(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The job is done: what its settings led to, by track, for TensorBoard's table of hyper-parameters."""
        if self._board is not None:
            self._board.hyperparameters(self._settings, metrics, step)

    def stop(self) -> None:
        """End the job's display and event file; raises no OSError, so that an error on its way is not hidden."""
        if self._display is not None:
            with suppress(OSError):
                self._display.close()
            self._display = None
        if self._board is not None:
            self._board.close()
            self._board = None
