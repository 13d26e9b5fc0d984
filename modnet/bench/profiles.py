"""Where time goes: a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, and shares by kind of operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from modnet.store import atomic_file

KINDS = {  # parts of the names of operators
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("scaled_dot_product",),
    "GELU": ("gelu",),
    "copies": ("aten::copy_", "aten::cat"),
    "norms": ("layer_norm",),
}
MAKING = ("uniform_", "normal_", "random_")  # operators that make a network


@contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Record the body's operations into a trace file; timings of the body are slower for it. None: do nothing."""
    if path is None:
        yield
        return
    from torch.profiler import ProfilerActivity, profile, supported_activities

    wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & set(supported_activities())
    with profile(activities=list(wanted)) as recorded:
        yield
    with atomic_file(path) as temporary:
        recorded.export_chrome_trace(str(temporary))


def shares(run: Callable[[], object]) -> str:
    """What a call's processor time goes into, by kind, but for making networks; nothing while a trace is recorded."""
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return ""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    spent = dict.fromkeys([*KINDS, "others"], 0.0)
    for event in recorded.key_averages():
        if not any(part in event.key for part in MAKING):
            kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "others")
            spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return ", ".join(f"{kind} {100 * time / total:.0f} %" for kind, time in spent.items())
