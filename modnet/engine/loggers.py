"""What a run writes down as it goes: ``metrics.jsonl``, and TensorBoard beside it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modnet.store import disk_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


LOG = "metrics.jsonl"


def own_log(job: str) -> str:
    """The log of a job that is trained beside others in another process."""
    return f"metrics-{job}.jsonl"


def merge_logs(folder: Path) -> None:
    """Append the logs of jobs to the stage's own, in the order of their names."""
    for path in sorted(folder.glob(own_log("*"))):
        with disk_errors(folder), (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(path.read_text(encoding="utf-8"))
        path.unlink()


class MetricsLog:
    """One JSON object a line, appended; a resumed run first cuts off what its checkpoint does not know."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self) -> int:
        """The size in bytes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def truncate(self, offset: int) -> None:
        """Forget everything after ``offset`` bytes."""
        if self.end() > offset:
            with disk_errors(self.path):
                os.truncate(self.path, offset)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; raises RunFailed on a full disk."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> int:
        """Flush to the disk; the offset that a checkpoint stores."""
        if self.path.is_file():
            with disk_errors(self.path), self.path.open("r+b") as file:
                os.fsync(file.fileno())
        return self.end()


class TensorBoard:
    """Scalars, the settings and a sheet of training images, under ``tb/<job>``; imported when first used.

    Everything but :meth:`close` raises RunFailed on a full disk, which its writing thread reports at the next call.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _tell_no_disk_errors_of_threads()
        self.folder = folder
        with disk_errors(folder):
            self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=purge_step)

    def text(self, tag: str, value: str) -> None:
        """A text, shown as written."""
        with disk_errors(self.folder):
            self._writer.add_text(tag, f"```\n{value}\n```", 0)

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Mapping[str, Any], step: int) -> None:
        """Settings and the metrics they led to, for the table of hyper-parameters; the metrics are tagged ``final``."""
        from torch.utils.tensorboard.summary import hparams

        # Not add_hparams, which would make another run of them, beside this one.
        results = _flat({"final": metrics}, "/")
        with disk_errors(self.folder):
            for summary in hparams({k: _shown(v) for k, v in _flat(settings, ".").items()}, results):
                self._writer._get_file_writer().add_summary(summary, step)
        self.scalars(results, step)
        self.flush()

    def scalars(self, values: Mapping[str, Any], step: int, tag: str = "") -> None:
        """Numbers of a nested mapping, tagged by the path to them."""
        for name, value in values.items():
            path = f"{tag}/{name}" if tag else name
            if isinstance(value, Mapping):
                self.scalars(value, step, path)
            else:
                with disk_errors(self.folder):
                    self._writer.add_scalar(path, value, step)

    def images(self, images: Tensor) -> None:
        """A sheet of images in [0, 1], shape (n, channels, size, size)."""
        with disk_errors(self.folder):
            self._writer.add_images("train/augmented", images, 0)

    def figure(self, tag: str, figure: Any) -> None:
        """A matplotlib figure."""
        with disk_errors(self.folder):
            self._writer.add_figure(tag, figure, 0, close=False)

    def flush(self) -> None:
        """Hand what is buffered to the file."""
        with disk_errors(self.folder):
            self._writer.flush()

    def close(self) -> None:
        """Flush and close; a disk that refuses is not told here, as it would hide why the run ended."""
        with suppress(OSError):
            self._writer.close()


def _tell_no_disk_errors_of_threads() -> None:
    """Keep the trace of TensorBoard's writing thread off the screen: the next call raises its error again."""
    before = threading.excepthook
    if getattr(before, "quiet", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    hook.quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def _flat(values: Mapping[str, Any], joint: str) -> dict[str, Any]:
    """A nested mapping as one, the path to each value for its name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{joint}{rest}": inner for rest, inner in _flat(value, joint).items()}
        else:
            flat[name] = value
    return flat


def _shown(value: Any) -> Any:
    """A value as the table of hyper-parameters takes it: a number, a text, or nothing."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, default=str)


def sheet(x: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, most: int = 32) -> Tensor | None:
    """The first images of a normalised batch in [0, 1] for display; None if these are no images."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return None
    images = x[:most].detach().float().cpu()
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        return (images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)
