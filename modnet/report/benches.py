"""What `modnet bench` prints: one row for each finding, with what is aimed at beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from rich.table import Table

from modnet.bench.pairs import Comparison, Finding, Measure, Skipped


def bench_table(findings: Sequence[Finding]) -> Table:
    """Comparisons: ours over the baseline, median times and ratios; measures: the median value; least and greatest."""
    table = Table(box=None, pad_edge=False, header_style="bold", leading=1)
    table.add_column("ours\nbaseline")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("times faster\nleast to most", justify="right", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    for found in findings:
        if not isinstance(found, Skipped):
            aim = f"{found.aim.text}\n{'reached' if found.reached else 'NOT reached'}" if found.aim else ""
            table.add_row(*_row(found), aim)
    return table


def _row(found: Comparison | Measure) -> tuple[str, ...]:
    spread = f"{found.figure:.3g}\n{min(found.values):.3g} to {max(found.values):.3g}"
    if isinstance(found, Measure):
        return f"{found.what}\n{found.unit}", "", spread
    own, other = (1000 * median(s) for s in (found.seconds, found.baseline_seconds))
    return f"{found.ours}\n{found.baseline}", f"{own:,.1f}\n{other:,.1f}", spread


def told(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for everything that was left out, or that has more to say than a row holds."""
    for found in findings:
        if isinstance(found, Skipped):
            yield f"{found.name}: skipped, {found.why}"
        elif found.note:
            yield f"{found.name}: {found.note}"
