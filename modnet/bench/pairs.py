"""Timing two ways of doing the same, by turns, so that the machine's moods fall on both alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
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


def changes(found: Sequence[Comparison], old: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each comparison that an earlier file has as well: both ratios, and whether they lie apart."""
    before = {entry["name"]: entry for entry in old}
    lines = []
    for c in found:
        if (entry := before.get(c.name)) is None:
            lines.append(f"{c.name}: {c.ratio:.2f}, not measured before")
            continue
        apart = max(c.ratios) < entry["least"] or min(c.ratios) > entry["most"]
        word = ("slower" if c.ratio < entry["ratio"] else "faster") if apart else "within the spread"
        lines.append(f"{c.name}: {entry['ratio']:.2f} before, {c.ratio:.2f} now, {word}")
    return lines


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    from modnet import __version__
    from modnet.bench.networks import libraries

    here = {"cpu": cpu, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return {
        **here,
        "modnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **libraries(),
    }


def _cpu_lines() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
