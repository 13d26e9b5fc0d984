"""The result of a run as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Interval = Mapping[str, Any]


def percent(value: Interval) -> str:
    """A mean accuracy, with its 95 % half width if there are several seeds."""
    half = value["half_width"]
    return f"{value['mean']:.2f}" + (f" ± {half:.2f}" if half is not None else "")


def count(value: Interval) -> str:
    """A mean number with its SI suffix, three digits."""
    return si(float(value["mean"]))


def si(size: float) -> str:
    """A number with its SI suffix, three digits."""
    for limit, suffix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{size / limit:.3g} {suffix}"
    return f"{size:.3g}"


def seconds(value: Interval) -> str:
    """A duration in seconds, or minutes from ten minutes on."""
    return f"{value['mean']:.0f} s" if value["mean"] < 600 else f"{value['mean'] / 60:.0f} min"


def bits(value: Interval) -> str:
    """Mean bits a byte, with the 95 % half width if there are several seeds."""
    half = value["half_width"]
    return f"{value['mean']:.4f}" + (f" ± {half:.4f}" if half is not None else "")


COLUMNS: tuple[tuple[str, str, Callable[[Interval], str], int], ...] = (
    # metric, heading, form, how wide the terminal must be to show it
    ("val_bits_per_byte", "val\nbits/byte", bits, 90),
    ("bits_per_byte", "test\nbits/byte", bits, 0),
    ("before", "before\nfine-tuning", percent, 0),
    ("val_top1", "val\ntop-1 %", percent, 90),
    ("top1", "test\ntop-1 %", percent, 0),
    ("shift_top1", "shifted\ntop-1 %", percent, 0),
    ("few_shot_top1", "few-shot\ntop-1 %", percent, 0),
    ("few_shot_half_width", "± over\nepisodes", percent, 0),
    ("top5", "top-5 %", percent, 120),
    ("nll", "NLL", lambda v: f"{v['mean']:.3f}", 120),
    ("ece", "ECE", lambda v: f"{v['mean']:.3f}", 120),
    ("parameters", "params", count, 0),
    ("active_parameters", "active\nparams", count, 0),
    ("macs", "MACs", count, 0),
    ("strong_share", "asks strong\n%", percent, 0),
    ("macs_share", "of strong's\nMACs, %", percent, 0),
    ("images_per_second", "images\na second", count, 120),
    ("seconds", "seconds", seconds, 0),
    ("seconds_all", "with\nteacher", seconds, 100),
    ("flops_student", "FLOPs of\nstudent", count, 100),
    ("flops_passes", "+ frozen\npasses", count, 140),
    ("flops_all", "+ teacher\nand meta", count, 100),
)


LONGEST_STAGE = 18
MOST_STAGES_ACROSS = 5
MOST_PAIRS = 15


def results_table(summary: Mapping[str, Any], width: int = 80) -> RenderableType:
    """Rows of results, as many columns as the terminal holds; each shift suite; the paired differences over seeds."""
    rows = summary["rows"]
    shown = [c for c in COLUMNS if c[3] <= width and any(c[0] in row for row in rows.values())]
    table = Table(title=_title(summary), title_justify="left", header_style="bold")
    table.add_column("stage", no_wrap=max(map(len, rows)) <= LONGEST_STAGE, overflow="fold")
    for _, heading, _, _ in shown:
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(form(row[metric]) if metric in row else "" for metric, _, form, _ in shown))
    return Group(table, *_texts(summary), *_suites(summary), *_differences(summary))


def _texts(summary: Mapping[str, Any]) -> list[Table]:
    """Bits a byte of every stage on every text, where there are several: what was forgotten shows in no single one."""
    found = summary["suites"]
    names = dict.fromkeys(n for suites in found.values() for n, s in suites.items() if "bits_per_byte" in s["mean"])
    if len(names) < 2:
        return []
    table = Table(title="bits a byte, test", title_justify="left", header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for stage, suites in found.items():
        table.add_row(stage, *(bits(suites[name]["mean"]["bits_per_byte"]) for name in names))
    return [table]


def _suites(summary: Mapping[str, Any]) -> list[Table]:
    """A table for every suite of several parts: top-1 by part; severities of one change are averaged."""
    suites = {suite: None for found in summary["suites"].values() for suite in found}
    return [table for suite in suites if (table := _suite(suite, summary["suites"])) is not None]


def _suite(suite: str, by_stage: Mapping[str, Any]) -> Table | None:
    columns = {stage: _by_change(found[suite]["top1"]) for stage, found in by_stage.items() if suite in found}
    parts = list(next(iter(columns.values())))
    if len(parts) <= 2:  # one part and its mean
        return None
    table = Table(title=f"{suite}, top-1 %", title_justify="left", header_style="bold")
    if len(columns) > MOST_STAGES_ACROSS:
        table.box, table.padding = None, (0, 1, 0, 0)
        _add(table, "stage", parts, {stage: [values[part] for part in parts] for stage, values in columns.items()})
    else:
        _add(table, "part", list(columns), {part: [values[part] for values in columns.values()] for part in parts})
        table.rows[-2].end_section = True
    return table


def _add(table: Table, corner: str, headings: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    table.add_column(corner, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))


def _by_change(top1: Mapping[str, Interval]) -> dict[str, float]:
    """Mean over the severities of every change (``fog/3``), and the mean over all parts, last."""
    changes = dict.fromkeys(part.partition("/")[0] for part in top1 if part != "mean")
    found = {c: fmean(v["mean"] for part, v in top1.items() if part.partition("/")[0] == c) for c in changes}
    return {**found, "mean": top1["mean"]["mean"]}


def _title(summary: Mapping[str, Any]) -> str:
    seeds, shared = summary["seeds"], ", ".join(summary["pinned"])
    told = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± 95 % interval over seeds {', '.join(map(str, seeds))}"
    return f"{told}; the same for every seed: {shared}" if shared and len(seeds) > 1 else told


def _differences(summary: Mapping[str, Any]) -> list[Text]:
    """A line for every pair; of very many pairs, those of one budget (``METHOD_BUDGET``, the same after the last _)."""
    if len(summary["seeds"]) < 2:
        return []
    pairs = summary["differences"]
    if len(pairs) > MOST_PAIRS:
        pairs = {
            pair: found for pair, found in pairs.items() if len({n.rpartition("_")[2] for n in pair.split(" - ")}) == 1
        }
    lines = []
    for pair, metrics in pairs.items():
        told = ", ".join(
            f"{metric} {value['mean']:+.2f} ± {value['half_width']:.2f}" for metric, value in metrics.items()
        )
        lines.append(Text(f"{pair}: {told}"))
    return lines


GIB = 1 << 30


def size(numbers: float) -> str:
    """Parameters or multiply-adds as published tables print them: ``86.6 M``, ``167.4 G``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if numbers >= limit:
            return f"{numbers / limit:.1f} {suffix}"
    return f"{numbers:.0f}"


def _learning(modules: Sequence[int]) -> str:
    """``28.9 M``; of several modules that learn apart ``21.8 + 21.3 + … M`` would be long: their number and sum."""
    return size(sum(modules)) + (f" in {len(modules)}" if len(modules) > 1 else "")


def _memory(held: float) -> str:
    return f"{held / GIB:.2f}" if held >= GIB / 100 else f"{held / GIB:.4f}"


def _duration(spent: float) -> str:
    for limit, unit in ((2 * 86400, "d"), (2 * 3600, "h"), (120, "min")):
        if spent >= limit:
            return f"{spent / (limit / 2):.1f} {unit}"
    return f"{spent:.1f} s"


PLAN_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("stage", "stage", str),
    ("network", "network", str),
    ("model", "model", str),
    ("inputs", "inputs", str),
    ("verb", "verb", str),
    ("state", "state", str),
    ("epochs", "epochs", str),
    ("parameters", "parameters", si),
    ("MACs", "MACs", size),
    ("with norms", "MACs as\npublished", size),
    ("learns", "learns", _learning),
    ("frozen", "frozen", size),
    ("weights", "weights,\ngradients", _memory),
    ("activations", "activa-\ntions", _memory),
    ("optimizer", "opti-\nmizer", _memory),
    ("flops", "FLOPs", si),
    ("student", "FLOPs of\nstudent", si),
    ("with passes", "+ frozen\npasses", si),
    ("with all", "+ teacher\nand meta", si),
    ("share", "share of end\nto end", str),
    ("seconds", "time", _duration),
    ("reads", "reads", str),
)


def plan_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of a plan, numbers in short form, memory in GiB."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [column for column in PLAN_COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    for key, heading, form in shown:
        right = form is not str or key == "epochs"
        table.add_column(heading, justify="right" if right else "left", no_wrap=key != "reads")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else form(row[key]) for key, _, form in shown))
    return table
