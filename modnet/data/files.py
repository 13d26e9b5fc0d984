"""Data files on disk: where they lie and how they are fetched."""

from __future__ import annotations

import http.client
import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from modnet.store import disk_errors

log = logging.getLogger("modnet.data")
TIMEOUT = 10.0  # seconds without an answer after which a mirror counts as unreachable
ELSEWHERE = "set MODNET_DATA to a folder that can be written"
_CHUNK = 1 << 20


class Unreachable(Exception):
    """A place that could give a file did not; the message says which and why."""


def data_home() -> Path:
    """The folder that data is kept in: ``MODNET_DATA``, else ``~/.cache/modnet``."""
    return Path(os.environ.get("MODNET_DATA") or "~/.cache/modnet").expanduser()


def mend(path: Path) -> str:
    """What a user does about a damaged file: only those of the data folder are fetched again once they are gone."""
    if path.is_relative_to(data_home()):
        return "Delete it; it will be fetched again."
    return f"It is not modnet's own: install it anew, or put a good copy into {data_home()}, which is looked at first."


def download(url: str, target: Path) -> None:
    """Fetch ``url`` into ``target``; raises Unreachable with the reason, RunFailed if the disk refuses."""
    with disk_errors(target, ELSEWHERE), target.open("wb") as file:
        for chunk in _received(url):
            file.write(chunk)


def _received(url: str) -> Iterator[bytes]:
    """The bytes of an address; errors of the caller, who writes them to a disk, do not pass through here."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while chunk := answer.read(_CHUNK):
                yield chunk
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {getattr(error, 'reason', None) or error}") from error
