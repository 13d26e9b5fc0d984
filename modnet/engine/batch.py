"""A training batch, and what yields batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass
class Batch:
    """``x`` float32, normalised; ``y`` int64 (B,); ``target`` float32 (B, classes) if labels were mixed; ``ids`` (B,)."""

    x: Tensor
    y: Tensor
    ids: Tensor
    target: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def split(self, parts: int) -> list[Batch]:
        """Near-equal consecutive micro-batches, at most ``parts`` of them."""
        size = -(-len(self) // parts)
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        return [
            Batch(
                self.x[c],
                self.y[c],
                self.ids[c],
                None if self.target is None else self.target[c],
                self.extra,
            )
            for c in cuts
        ]


class Batches(Protocol):
    """A source of training batches: epoch ``e`` is a pure function of its key and ``e``."""

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        ...
