"""A sweep over seeds and students that share one teacher's stored outputs, against as many separate runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from modnet.bench.modules import Phase
from modnet.bench.pairs import Finding, compare, faster

COUNT, BLOCKS, STEPS = 4, 2, 8
SEEDS, WIDTHS = range(5), (48, 32)


def sweep(repeats: int) -> list[Finding]:
    """5 seeds of 2 students: m2mKD's module phase from one teacher, filling the store included.

    With a common ``data_seed`` the teacher's outputs and what enters the modules are computed once; the separate runs,
    which are fused as well, each see their own order and augmentation and compute them anew.
    """
    phase = Phase(COUNT, BLOCKS, STEPS)

    def shared() -> None:
        with tempfile.TemporaryDirectory() as home:
            stored = phase.replayed(Path(home), prefix=True)
            for student, _ in runs():
                phase.fused(stored, student)

    def separate() -> None:
        for student, seed in runs():
            phase.fused(phase.batches_of(seed), student)

    told = f"{len(SEEDS)} seeds of {len(WIDTHS)} students"
    ours, baseline = f"{told}, one replay", f"{len(SEEDS) * len(WIDTHS)} separate runs"
    return [compare("sweep", (ours, shared), (baseline, separate), repeats, faster(1.6))]


def runs() -> Iterator[tuple[tuple[int, int], int]]:
    """A student's width and seed, and the seed of order and augmentation that a separate run has."""
    return (((width, seed), seed) for width in WIDTHS for seed in SEEDS)
