"""What a run writes down as it goes: ``metrics.jsonl``, and TensorBoard beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modnet.store import disk_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """One JSON object a line, appended; a resumed run first cuts off what its checkpoint does not know."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self) -> int:
        """The size in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, offset: int) -> None:
        """Forget everything after ``offset`` bytes."""
        if self.end() > offset:
            os.truncate(self.path, offset)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; raises RunFailed on a full disk."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> int:
        """Flush to the disk; the offset that a checkpoint stores."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
        return self.end()


class TensorBoard:
    """Scalars, the settings and a sheet of training images, under ``tb/<job>``; imported when first used."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=purge_step)

    def text(self, tag: str, value: str) -> None:
        """A text, shown as written."""
        self._writer.add_text(tag, f"```\n{value}\n```", 0)

    def scalars(self, values: Mapping[str, Any], step: int, tag: str = "") -> None:
        """Numbers of a nested mapping, tagged by the path to them."""
        for name, value in values.items():
            path = f"{tag}/{name}" if tag else name
            if isinstance(value, Mapping):
                self.scalars(value, step, path)
            else:
                self._writer.add_scalar(path, value, step)

    def images(self, images: Tensor) -> None:
        """A sheet of images in [0, 1], shape (n, channels, size, size)."""
        self._writer.add_images("train/augmented", images, 0)

    def flush(self) -> None:
        """Hand what is buffered to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


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
