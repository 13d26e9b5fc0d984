"""Timing several ways of doing the same, by turns, so that the machine's moods fall on all alike; and what is aimed at.

A subject gives *findings*: a comparison of two ways, a measure of one thing alone, or why something was left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

Of = Literal["ratio", "seconds", "value"]
Call = Callable[[], object]


@dataclass(frozen=True)
class Aim:
    """What is to be reached: a bound, from below or above, of the median ratio, of our seconds, or of a value."""

    bound: Literal["least", "most"]
    at: float
    of: Of = "ratio"

    def reached(self, figure: float) -> bool:
        """Whether a figure lies within the bound."""
        return figure >= self.at if self.bound == "least" else figure <= self.at

    @property
    def text(self) -> str:
        """The bound as a table prints it."""
        sign = "≥" if self.bound == "least" else "≤"
        return f"{sign} {1000 * self.at:.0f} ms" if self.of == "seconds" else f"{sign} {self.at:.3g}"


def faster(ratio: float) -> Aim:
    """At least so many times as fast as the baseline."""
    return Aim("least", ratio)


def within(share: float) -> Aim:
    """At most so many times the baseline's time."""
    return Aim("least", 1 / share)


@dataclass(frozen=True)
class Comparison:
    """What was compared with what, and seconds of each repeat; ``ratio`` is how many times faster the first is.

    ``also``: whether what belongs to the aim beside time is so (an accuracy that was reached); ``note`` says it.
    """

    name: str
    ours: str
    baseline: str
    seconds: tuple[float, ...]
    baseline_seconds: tuple[float, ...]
    aim: Aim | None = None
    note: str = ""
    also: bool = True

    @property
    def ratios(self) -> list[float]:
        """Baseline's time over ours, repeat by repeat."""
        return [theirs / ours for ours, theirs in zip(self.seconds, self.baseline_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        return self.also and self.aim.reached(median(self.seconds) if self.aim.of == "seconds" else self.ratio)

    figure, values = ratio, ratios
    rising = True  # whether more is better

    def plain(self) -> dict[str, Any]:
        """All of it as data for JSON."""
        spread = {"ratio": self.ratio, "least": min(self.ratios), "most": max(self.ratios)}
        return {**asdict(self), **spread, "reached": self.reached}


@dataclass(frozen=True)
class Measure:
    """One thing measured alone, once a repeat, in a ``unit``."""

    name: str
    what: str
    unit: str
    values: tuple[float, ...]
    aim: Aim | None = None
    note: str = ""

    @property
    def figure(self) -> float:
        """The median of the values."""
        return median(self.values)

    @property
    def rising(self) -> bool:
        """Whether more is better."""
        return self.aim is not None and self.aim.bound == "least"

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        return None if self.aim is None else self.aim.reached(self.figure)

    def plain(self) -> dict[str, Any]:
        """All of it as data for JSON."""
        spread = {"median": self.figure, "least": min(self.values), "most": max(self.values)}
        return {**asdict(self), **spread, "reached": self.reached}


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why."""

    name: str
    why: str

    def plain(self) -> dict[str, Any]:
        """All of it as data for JSON."""
        return {"name": self.name, "skipped": self.why}


Finding = Comparison | Measure | Skipped


def turns(calls: Sequence[Call], repeats: int) -> list[tuple[float, ...]]:
    """Seconds of each call in each repeat: all in turn, ``repeats`` times after one untimed call of each."""
    return rounds([partial(timed, call) for call in calls], repeats + 1, untimed=1)


def rounds(calls: Sequence[Callable[[], float]], repeats: int, untimed: int = 0) -> list[tuple[float, ...]]:
    """What each call gives in each repeat, all in turn; the first so many repeats are left out."""
    found = [[call() for call in calls] for _ in range(repeats)]
    return [tuple(column) for column in zip(*found[untimed:], strict=True)]


def timed(call: Call) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    name: str, ours: tuple[str, Call], baseline: tuple[str, Call], repeats: int, aim: Aim | None = None
) -> Comparison:
    """Time both, in turn, ``repeats`` times after one untimed call of each."""
    own, other = turns([ours[1], baseline[1]], repeats)
    return Comparison(name, ours[0], baseline[0], own, other, aim)


def changes(found: Sequence[Finding], old: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each finding that an earlier file has as well: both figures, and whether they lie apart."""
    before = {entry["name"]: entry for entry in old if "skipped" not in entry}
    lines = []
    for c in found:
        if isinstance(c, Skipped):
            continue
        if (entry := before.get(c.name)) is None:
            lines.append(f"{c.name}: {c.figure:.2f}, not measured before")
            continue
        was = entry["ratio"] if isinstance(c, Comparison) else entry["median"]
        apart = max(c.values) < entry["least"] or min(c.values) > entry["most"]
        worse, better = ("slower", "faster") if isinstance(c, Comparison) else ("worse", "better")
        word = (worse if (c.figure < was) == c.rising else better) if apart else "within the spread"
        lines.append(f"{c.name}: {was:.2f} before, {c.figure:.2f} now, {word}")
    return lines
