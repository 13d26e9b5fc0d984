"""A training batch, and what yields batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

REPLAYED = "replayed/"  # what names in ``extra`` begin with that hold stored outputs of frozen parts


@dataclass
class Batch:
    """``x`` float32, normalised; ``y`` int64 (B,); ``target`` float32 (B, classes) if labels were mixed.

    Of text: ``x`` int64 (B, length), the ids; ``y`` int64 (B, length), the id after each.

    ``ids``: int64 (B,), sample numbers. ``extra``: further inputs; tensors of B rows belong to the samples.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    target: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def replayed(self) -> dict[str, Tensor]:
        """Stored outputs of frozen parts, by name, each of B rows."""
        return {name.removeprefix(REPLAYED): x for name, x in self.extra.items() if name.startswith(REPLAYED)}

    def split(self, parts: int) -> list[Batch]:
        """Near-equal consecutive micro-batches, at most ``parts`` of them."""
        size = -(-len(self) // parts)
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def rows(self, rows: slice) -> Batch:
        """Some of the samples."""
        target = None if self.target is None else self.target[rows]
        extra = {name: value[rows] if self._by_sample(value) else value for name, value in self.extra.items()}
        return Batch(self.x[rows], self.y[rows], self.ids[rows], target, extra)

    def _by_sample(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(self)


class Batches(Protocol):
    """A source of training batches: epoch ``e`` is a pure function of its key and ``e``."""

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        ...
