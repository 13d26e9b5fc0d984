"""Means over seeds with 95 % intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]
COMPARED = ("bits_per_byte", "top1", "shift_top1", "few_shot_top1")


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Values, mean, and the half width of the 95 % interval of the mean (Student's t; None for a single value)."""
    half = None
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": fmean(values), "half_width": half}


def summarise(results: Mapping[int, Mapping[str, Row]], pinned: Collection[str] = ()) -> dict[str, Any]:
    """``{"seeds", "rows": {name: {metric: interval}}, "suites", "differences", "pinned"}`` from rows by seed.

    ``suites``: every suite's mean scores and each part's top-1. Differences are second minus first, paired by seed,
    for every pair of rows and each accuracy. ``pinned``: stages that are the same for every seed.
    """
    seeds = sorted(results)
    names = list(results[seeds[0]]) if seeds else []
    by_name = {name: [results[seed][name] for seed in seeds] for name in names}
    rows = {name: _intervals(found) for name, found in by_name.items()}
    suites = {
        name: {
            suite: {kind: _intervals([row["suites"][suite][kind] for row in found]) for kind in ("mean", "top1")}
            for suite in found[0].get("suites", {})
        }
        for name, found in by_name.items()
    }
    return {"seeds": seeds, "rows": rows, "suites": suites, "differences": _pairs(rows), "pinned": sorted(pinned)}


def _intervals(rows: Sequence[Row]) -> dict[str, Any]:
    """Each number of like rows over the seeds."""
    numbers = [metric for metric, value in rows[0].items() if isinstance(value, int | float)]
    return {metric: interval([float(row[metric]) for row in rows]) for metric in numbers}


def _pairs(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for first, second in combinations(rows, 2):
        shared = [m for m in COMPARED if m in rows[first] and m in rows[second]]
        found[f"{second} - {first}"] = {
            metric: interval(
                [b - a for a, b in zip(rows[first][metric]["values"], rows[second][metric]["values"], strict=True)]
            )
            for metric in shared
        }
    return found
