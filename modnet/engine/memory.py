"""Memory that a training step frees is kept for the next one, rather than given back to the system and asked for anew.

Every step makes the same large tensors. By default glibc maps and unmaps the largest of them, and trims its heap when
much is freed, so that the system has to clear their pages again in every step.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Parameters of glibc's mallopt(3). ORDINARY: the most that its own adjustment comes to. KEEPING: neither trim nor map.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
ORDINARY = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}


@contextmanager
def kept_memory() -> Iterator[None]:
    """In the body freed memory stays with the process; afterwards the system gets it back.

    Does nothing with another C library than glibc, or where the user has set how memory is allocated. The settings are
    the process's: one body at a time.
    """
    libc = None if _set_by_user() else _glibc()
    if libc is None:
        yield
        return
    _set(libc, KEEPING)
    try:
        yield
    finally:
        _set(libc, ORDINARY)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)


def _set_by_user() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
