"""Writing while training goes on: tensors are copied at once, files are written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from torch import Tensor

from modnet.engine.checkpoint import Tensors


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors as they are now, on the CPU, on storage of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class Writer:
    """Does one piece of writing at a time in the background; an error is raised by the next call, in the caller.

    What is written is atomic on its own, so that a process killed meanwhile leaves the earlier state.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin writing; waits for what was begun before and raises its error."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # it is raised again by the thread that trains
                self._error = error

        # No daemon: a process that ends waits for its last checkpoint.
        self._thread = threading.Thread(target=run, name="modnet checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything is written; raises the error if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
