"""A trace of what is timed, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modnet.store import atomic_file


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
