"""What a person sees of a running job: a progress bar on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_EVERY = 5.0  # seconds
MUCH_WAITING = 0.1  # share of the time, from which on it is shown
BAR_EVERY = 0.1  # seconds; the bar is drawn four times a second, and its texts cost as much as a small layer


@dataclass
class Status:
    """What is shown: steps, epochs, and the last known numbers (None: not known yet)."""

    title: str
    step: int
    total: int
    per_epoch: int
    images: int = 0
    waited: float = 0.0  # share of the time spent waiting for data
    loss: float | None = None
    val: float | None = None

    @property
    def epoch(self) -> str:
        """The running epoch of all, from 1."""
        epochs = self.total // self.per_epoch if self.per_epoch else 0
        return f"epoch {min(self.step // max(1, self.per_epoch) + 1, epochs)}/{epochs}"


class Display:
    """Shows a job's progress on a console; without a terminal at most one line every few seconds."""

    def __init__(self, console: Console | None, status: Status) -> None:
        self.console, self.status = console, status
        self._began, self._first_step = time.monotonic(), status.step
        self._last_line, self._last_tick = self._began, 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if console is not None and console.is_terminal:
            self._bar = _bar(console)
            self._task = self._bar.add_task(status.title[:16], total=status.total, **self._fields())
            self._bar.start()

    def _fields(self) -> dict[str, Any]:
        status = self.status
        return {
            "epoch": status.epoch,
            "rate": f"{self.images_per_second():,.0f} img/s",
            "data": f"data {100 * status.waited:.0f} %" if status.waited >= MUCH_WAITING else "",
            "loss": "" if status.loss is None else f"loss {status.loss:.3f}",
            "val": "" if status.val is None else f"val {status.val:.2f}",
            "left": self.time_left(),
        }

    def images_per_second(self) -> float:
        """Images since this display began, validation included."""
        return self.status.images / max(1e-9, time.monotonic() - self._began)

    def time_left(self) -> str:
        """How long the rest takes at the speed so far, as h:mm:ss."""
        done = self.status.step - self._first_step
        if not done:
            return "-:--:--"
        seconds = (time.monotonic() - self._began) / done * (self.status.total - self.status.step)
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

    def tick(self) -> None:
        """:meth:`update` after a step, unless the last one was a moment ago."""
        now = time.monotonic()
        if now - self._last_tick >= BAR_EVERY or self.status.step >= self.status.total:
            self._last_tick = now
            self.update()

    def update(self) -> None:
        """Show the status as it is now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.status.step, **self._fields())
        elif self.console is not None and time.monotonic() - self._last_line >= PLAIN_EVERY:
            self.line()

    def line(self) -> None:
        """Print the status as one plain line."""
        if self.console is None:
            return
        self._last_line = time.monotonic()
        status, fields = self.status, self._fields()
        parts = [f"step {status.step}/{status.total}", *fields.values()]
        text = "  ".join([status.title, *filter(None, parts)])
        self.console.print(f"{text} left", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away; the caller prints what is to stay."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    columns = ("epoch", "rate", "data", "loss", "val", "left")
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        *(TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in columns),
        console=console,
        refresh_per_second=4,
        transient=True,
        expand=True,
    )
