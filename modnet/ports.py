"""Ports: what flows between two leaves of a chain, and the error where two do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from modnet.errors import RequestError


@dataclass(frozen=True)
class Port:
    """What flows between two leaves: a kind and its dimensions; a dimension that is None fits any.

    Kinds: ``image(channels, size)``, ``tokens(width, prefix, grid)``, ``maps(channels, height, width)`` (feature maps
    of a convolutional network, sizes in cells), ``ids(vocab, length)``, ``state(width, slots)``, ``features(width)``,
    ``logits(classes, per)`` (``per`` image or position), ``branches(of)``.
    """

    kind: str
    dims: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, kind: str, **dims: Any) -> Port:
        """A port from keyword dimensions; lists become tuples so that ports compare and hash."""
        return cls(kind, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(dims.items())))

    def __getitem__(self, name: str) -> Any:
        return dict(self.dims).get(name)

    def fits(self, other: Port | None) -> bool:
        """Whether what leaves this port may enter ``other``."""
        if other is None:
            return True
        theirs = dict(other.dims)
        return self.kind == other.kind and all(
            value is None or theirs.get(name) is None or theirs[name] == value for name, value in self.dims
        )

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in self.dims)})"


class PortMismatch(RequestError, TypeError):
    """Two neighbouring leaves do not fit; the message names both, both ports and the fix."""

    def __init__(self, left: nn.Module, gives: Port, right: nn.Module, takes: Port) -> None:
        super().__init__(
            f"{type(left).__name__} gives {gives} but {type(right).__name__}, which follows it, takes {takes}; "
            "put a stitch between them (modnet.surgery.stitched) or build both for the same port"
        )
