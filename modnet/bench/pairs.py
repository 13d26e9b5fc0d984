"""Timing two ways of doing the same, by turns, so that the machine's moods fall on both alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """What was compared with what, and seconds of each repeat; ``ratio`` is how many times faster the first is."""

    name: str
    ours: str
    baseline: str
    seconds: tuple[float, ...]
    baseline_seconds: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Baseline's time over ours, repeat by repeat."""
        return [theirs / ours for ours, theirs in zip(self.seconds, self.baseline_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    def plain(self) -> dict[str, Any]:
        """All of it as data for JSON."""
        spread = {"ratio": self.ratio, "least": min(self.ratios), "most": max(self.ratios)}
        return {**asdict(self), **spread}


def compare(
    name: str, ours: tuple[str, Callable[[], object]], baseline: tuple[str, Callable[[], object]], repeats: int
) -> Comparison:
    """Time both, in turn, ``repeats`` times after one untimed call of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for (_, call), found in zip((ours, baseline), seconds, strict=True):
            start = time.perf_counter()
            call()
            if repeat:
                found.append(time.perf_counter() - start)
    return Comparison(name, ours[0], baseline[0], tuple(seconds[0]), tuple(seconds[1]))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return {"cpu": cpu, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}


def _cpu_lines() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
