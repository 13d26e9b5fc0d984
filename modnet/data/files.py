"""Data files on disk: where they lie, how they are fetched, checked and kept."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modnet.errors import RunFailed

log = logging.getLogger("modnet.data")
TIMEOUT = 10.0  # seconds without an answer after which a mirror counts as unreachable
_CHUNK = 1 << 20


class Unreachable(Exception):
    """A place that could give a file did not; the message says which and why."""


def data_home() -> Path:
    """The folder that data is kept in: ``MODNET_DATA``, else ``~/.cache/modnet``."""
    return Path(os.environ.get("MODNET_DATA") or "~/.cache/modnet").expanduser()


def digest(path: Path, algorithm: str) -> str:
    """The file's digest in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the body ends well, and vanishes
    otherwise.

    Raises RunFailed if the disk refuses (full, read-only, no permission).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise RunFailed(
            f"cannot write {path}: {error.strerror or error}. Free some space, or set "
            "MODNET_DATA to a folder that can be written."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def download(url: str, target: Path) -> None:
    """Fetch ``url`` into ``target``; raises Unreachable with the reason."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            chunks = iter(lambda: answer.read(_CHUNK), b"")
            _pour(chunks, target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Unreachable(f"{url}: {getattr(error, 'reason', None) or error}") from error


def _pour(chunks: Iterator[bytes], target: Path) -> None:
    try:
        with target.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        if error.errno is None:  # the connection broke; disk errors carry a number
            raise Unreachable(str(error)) from error
        raise
