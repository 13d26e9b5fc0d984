"""Functions in several processes that meet by gloo, forked so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` gives in each of ``count`` processes, in the order of their ranks."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    started = [
        context.Process(target=_rank, args=(rank, count, port, queue, function, arguments)) for rank in range(count)
    ]
    for process in started:
        process.start()
    found = dict(queue.get(timeout=150) for _ in started)
    for process in started:
        process.join(timeout=30)
    wrong = [value for _, (ok, value) in sorted(found.items()) if not ok]
    assert not wrong, wrong[0]
    return [found[rank][1] for rank in range(count)]


def _rank(rank: int, count: int, port: int, queue: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        queue.put((rank, (True, function(*arguments))))
    except BaseException:
        queue.put((rank, (False, traceback.format_exc())))
