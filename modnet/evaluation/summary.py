"""Means over seeds with 95 % intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]
COMPARED = ("top1", "shift_top1")


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Values, mean, and the half width of the 95 % interval of the mean (Student's t; None for a single value)."""
    half = None
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": fmean(values), "half_width": half}


def summarise(results: Mapping[int, Mapping[str, Row]]) -> dict[str, Any]:
    """``{"seeds", "rows": {name: {metric: interval}}, "shifts", "differences"}`` from rows by seed.

    Differences are first minus second, paired by seed, for every pair of rows and each accuracy.
    """
    seeds = sorted(results)
    names = list(results[seeds[0]]) if seeds else []
    rows = {
        name: {
            metric: interval([float(results[seed][name][metric]) for seed in seeds])
            for metric, value in results[seeds[0]][name].items()
            if isinstance(value, int | float)
        }
        for name in names
    }
    return {"seeds": seeds, "rows": rows, "shifts": _shifts(results, seeds, names), "differences": _pairs(rows)}


def _shifts(results: Mapping[int, Mapping[str, Row]], seeds: list[int], names: list[str]) -> dict[str, Any]:
    return {
        name: {
            suite: {part: interval([results[seed][name]["shifts"][suite][part] for seed in seeds]) for part in parts}
            for suite, parts in results[seeds[0]][name].get("shifts", {}).items()
        }
        for name in names
    }


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
