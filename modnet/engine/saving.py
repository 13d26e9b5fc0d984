"""Writing while training goes on: tensors are copied at once, files are written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from modnet.engine.checkpoint import Tensors
from modnet.engine.divided import Part, whole


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors as they are now, on the CPU, on storage of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def gathered(parts: Iterable[Part], keep: bool) -> Tensors:
    """As :func:`copied`, of tensors that may be divided over ranks: whole, one after another, where they are kept.

    All ranks of a team go through the same parts.
    """
    found: Tensors = {}
    for name, part, like in parts:
        tensor = whole(part, like)
        if keep:
            found |= copied({name: tensor})
    return found


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
