"""Ctrl-C and SIGTERM: the first asks the run to stop after its step, the second stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """While entered, SIGINT and SIGTERM set :attr:`asked`; the handlers of before are back after the first.

    Processes forked meanwhile, such as the workers of a DataLoader, inherit the handlers: they let Ctrl-C, which a
    terminal sends to all of them, to the process that entered, and end at SIGTERM as ever.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._pid = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        # Only the main thread may set handlers; elsewhere a run is simply not interruptible.
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.asked = True
        self._restore()
        # A plain write: the handler may have interrupted the display in the middle of its own.
        os.write(2, b"\nstopping after this step and saving; once more stops at once\n")

    def _restore(self) -> None:
        while self._before and os.getpid() == self._pid:
            number, handler = self._before.popitem()
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
