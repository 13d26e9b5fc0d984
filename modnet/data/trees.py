"""Folders and archives as one thing: named files that can be gone through in order. Nothing is unpacked by itself."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from modnet.errors import RequestError, RunFailed

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_TARS = ARCHIVES[1:]


@dataclass(frozen=True)
class Member:
    """A file of a tree: its name with ``/`` between folders, its bytes, and its path if it lies on the disk itself.

    The bytes must be read before the next member is asked for.
    """

    name: str
    read: Callable[[], bytes]
    path: Path | None = None


def members(path: Path, inside: Collection[str] = ()) -> Iterator[Member]:
    """Every file of a folder, zip or tar, by name; names inside an archive begin with the archive's own.

    In a folder the archives called as ``inside`` says are gone through as well, and in a tar all tars. Raises
    RequestError if there is nothing at ``path``, RunFailed if an archive is damaged.
    """
    if path.is_dir():
        yield from _of_folder(path, inside)
    elif not path.is_file():
        raise RequestError(f"there is no file or folder {path}.")
    elif path.name.endswith(".zip"):
        with _damage(path), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield Member(f"{path.name}/{info.filename}", partial(_guarded, path, partial(archive.read, info)))
    elif path.name.endswith(_TARS):
        with _damage(path), path.open("rb") as file:
            yield from _of_tar(file, path, path.name)
    else:
        raise RequestError(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).")


def find(path: Path, *endings: str, archive: str = "") -> list[bytes | None]:
    """The bytes of the first file with each ending (``val/val_annotations.txt``); None where there is none.

    A folder is looked into to a depth of one, and so is the ``archive`` in it if that has not been found.
    """
    if not path.is_dir():
        return _in_archive(path, endings)
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    found = [next(((folder / e).read_bytes() for folder in folders if (folder / e).is_file()), None) for e in endings]
    if None in found and archive and (path / archive).is_file():
        return _in_archive(path / archive, endings)
    return found


def _in_archive(path: Path, endings: Sequence[str]) -> list[bytes | None]:
    found: dict[str, bytes] = {}
    for member in members(path):
        ending = next((e for e in endings if e not in found and f"/{member.name}".endswith(f"/{e}")), None)
        if ending is not None:
            found[ending] = member.read()
        if len(found) == len(endings):
            break
    return [found.get(ending) for ending in endings]


def _of_folder(root: Path, inside: Collection[str]) -> Iterator[Member]:
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name in inside:
                yield from members(path)
            else:
                yield Member(path.relative_to(root).as_posix(), path.read_bytes, path)


def _of_tar(file: IO[bytes], path: Path, name: str) -> Iterator[Member]:
    """The files of the archive at ``path``, or of a tar inside it, in their order."""
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for info in archive:
            opened = archive.extractfile(info) if info.isfile() else None
            if opened is None:
                continue
            if info.name.endswith(".tar"):
                yield from _of_tar(io.BytesIO(opened.read()), path, f"{name}/{info.name}")
            else:
                yield Member(f"{name}/{info.name}", partial(_guarded, path, opened.read))


def _guarded(path: Path, read: Callable[[], bytes]) -> bytes:
    with _damage(path):
        return read()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RunFailed(f"{path} is damaged or incomplete ({error}). Fetch it again.") from error
