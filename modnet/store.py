"""The artifact store and run folders: everything on disk is complete or absent, hashed, and never unpickled.

``store/<key>/`` holds one finished or running stage; ``stage.json`` is written last and makes it finished.
``<recipe>/seed-<n>/`` points to the stages of one run by relative links.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from modnet.errors import RunFailed

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
ELSEWHERE = "choose another place with --runs DIR"
LOGS = ("metrics.jsonl", "choices.json")
_BOOKS = ("begun.json", "stage.json", "lock")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_sha256(value: Any) -> str:
    """The SHA-256 of plain data's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def disk_errors(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Turn a full disk, a refused write or an impossible path in the body into a RunFailed that names the path.

    ``elsewhere``: how the user has it written to another place.
    """
    try:
        yield
    except SafetensorError as error:
        number = next((n for n in FULL_DISK | REFUSED if f"(os error {n})" in str(error)), None)
        if number is None:
            raise
        raise RunFailed(_cannot_write(path, number, str(error), elsewhere)) from error
    except OSError as error:
        if error.errno not in FULL_DISK | REFUSED | NO_FOLDER | {errno.ENAMETOOLONG}:
            raise
        raise RunFailed(_cannot_write(path, error.errno, error.strerror or str(error), elsewhere)) from error


def _cannot_write(path: Path, number: int, reason: str, elsewhere: str) -> str:
    if number in NO_FOLDER:
        file = next((part for part in (path, *path.parents) if part.is_file()), None)
        return f"{path} could not be written: {file or reason} is a file where a folder is needed. Please {elsewhere}."
    if number == errno.ENAMETOOLONG:
        return f"{path} could not be written: {reason}. Give what it is called by a shorter name, or {elsewhere}."
    remedy = f"make room (or {elsewhere})" if number in FULL_DISK else elsewhere
    return (
        f"{path} could not be written: {reason}. What was saved before is untouched; {remedy} "
        "and run the same command again to go on."
    )


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[Path]:
    """A temporary path to write; flushed and renamed to ``path`` if the body ends well, else removed.

    Raises RunFailed as :func:`disk_errors` does.
    """
    temporary = _temporary(path)
    try:
        with disk_errors(path, elsewhere):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # it would hide why the file could not be written
            temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the new one, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_json(path: Path, value: Any) -> None:
    """Write plain data as readable JSON, atomically."""
    atomic_write_text(path, json.dumps(value, indent=1) + "\n")


def atomic_link(path: Path, target: Path) -> None:
    """Make ``path`` a relative symbolic link to ``target``, replacing a link that stood there."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, path.parent))
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; flushed and put in the place of ``path``, whose old content goes only then.

    Folders cannot be exchanged in one step, so the old one is first renamed to ``<name>.old``; if the process dies
    between the two renames, :func:`settle` brings it back.
    """
    temporary, old = _temporary(path), path.with_name(f"{path.name}.old")
    try:
        with disk_errors(path):
            settle(path)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            sync(temporary)
            if path.exists():
                path.replace(old)
            temporary.replace(path)
            sync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(path: Path) -> None:
    """Finish what a killed :func:`atomic_folder` left: bring back the old folder, remove unfinished ones."""
    if not path.parent.is_dir():
        return
    old = path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)
    for left in (old, *path.parent.glob(f".{path.name}.*.tmp")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors, each on its own storage, and return the file's SHA-256."""
    path.touch()  # with the user's own permissions, which safetensors would narrow
    mode = path.stat().st_mode
    save_file({name: _own_storage(tensor) for name, tensor in tensors.items()}, path)
    path.chmod(mode)
    return sha256_file(path)


def _own_storage(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, and not a view into a larger storage (which safetensors refuses)."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def load_tensors(path: Path, sha256: str, remedy: str) -> dict[str, Tensor]:
    """Read tensors whose file has this SHA-256; raises RunFailed naming the file and the remedy otherwise."""
    if not path.is_file():
        raise RunFailed(f"{path} is missing although its folder says that it is complete; {remedy}")
    found = sha256_file(path)
    if found != sha256:
        raise RunFailed(
            f"{path} is damaged or was changed: its SHA-256 is {found[:12]}..., {sha256[:12]}... was written; {remedy}"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunFailed(f"{path} is no readable safetensors file ({error}); {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """Plain data from a JSON file; raises RunFailed naming the file and the remedy if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFailed(f"{path} cannot be read ({error}); {remedy}") from error


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every artifact at the top of a stage folder; logs and checkpoints are not artifacts."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return {name: sha256_file(folder / name) for name in names if name not in (*_BOOKS, *LOGS)}


class StageLock:
    """Exclusive use of a stage folder by one process (``flock``, released by the system if the process dies)."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None) -> None:
        self._file: IO[str] = (folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            if say is None:
                self._file.close()
                raise RunFailed(
                    f"{folder} is being written by {owner}; let it finish, or stop it, then run the same command again"
                ) from error
            say(f"waiting for {owner}, which is working on the same stage ({folder.name[:12]})")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()}")
        self._file.flush()

    def release(self) -> None:
        """Let other processes have the stage."""
        self._file.close()


@dataclass
class Store:
    """Stages by key under ``root``; ``say`` is told when a stage is waited for (None: fail instead)."""

    root: Path
    say: Callable[[str], None] | None = None
    _locks: dict[str, StageLock] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in list(self._locks):
            self.release(key)

    def folder(self, key: str) -> Path:
        """Where the stage of a key lies, whether it is there or not."""
        return self.root / key

    def is_done(self, key: str) -> bool:
        """Whether the stage is finished."""
        with disk_errors(self.folder(key)):
            finished = (self.folder(key) / "stage.json").is_file()
        return finished and self.manifest(key).get("status") == "done"

    def manifest(self, key: str) -> dict[str, Any]:
        """What ``stage.json`` says, or, of an unfinished stage, what it was begun with; raises RunFailed if none."""
        folder = self.folder(key)
        finished = folder / "stage.json"
        path = finished if finished.is_file() else folder / "begun.json"
        manifest: dict[str, Any] = read_json(path, f"delete {folder} and run the same command again")
        return manifest

    def result(self, key: str) -> Any:
        """The result of a finished stage; raises RunFailed if it was changed or is missing."""
        folder = self.folder(key)
        remedy = f"delete {folder} and run the same command again"
        path = folder / "result.json"
        if not path.is_file() or sha256_file(path) != self.manifest(key).get("hashes", {}).get("result.json"):
            raise RunFailed(f"{path} is missing or was changed after the stage finished; {remedy}")
        return read_json(path, remedy)

    def begin(self, key: str, manifest: Mapping[str, Any]) -> Path:
        """Create or continue a stage, alone: its folder. Waits for another process or raises RunFailed.

        Ask :meth:`is_done` again afterwards: the process that was waited for may have finished the stage.
        """
        folder = self.folder(key)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if key not in self._locks:
                self._locks[key] = StageLock(folder, self.say)
        if not self.is_done(key):
            atomic_write_json(folder / "begun.json", {**manifest, "key": key, "status": "running"})
        return folder

    def finish(self, key: str, result: Any) -> None:
        """Write the result, then ``stage.json`` with the hashes of all artifacts, and free the stage."""
        folder, manifest = self.folder(key), self.manifest(key)
        atomic_write_json(folder / "result.json", result)
        atomic_write_json(folder / "stage.json", {**manifest, "status": "done", "hashes": _hashes(folder)})
        (folder / "begun.json").unlink(missing_ok=True)
        self.release(key)

    def release(self, key: str) -> None:
        """Free a stage without finishing it."""
        lock = self._locks.pop(key, None)
        if lock is not None:
            lock.release()


def save_network(folder: Path, name: str, state: Mapping[str, Tensor], description: Any) -> None:
    """Write ``name.safetensors`` and then ``name.json`` (description, hash), each atomically; dtypes are kept."""
    with atomic_file(folder / f"{name}.safetensors") as temporary:
        sha256 = save_tensors(temporary, state)
    atomic_write_json(folder / f"{name}.json", {"sha256": sha256, "chain": description})


def load_network(folder: Path, name: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors and description that :func:`save_network` wrote; raises RunFailed naming a damaged or missing file."""
    remedy = f"delete {folder} and run the same command again"
    path = folder / f"{name}.json"
    entry = read_json(path, remedy)
    if not isinstance(entry, dict) or not {"sha256", "chain"} <= entry.keys():
        raise RunFailed(f"{path} does not describe a network; {remedy}")
    return load_tensors(folder / f"{name}.safetensors", entry["sha256"], remedy), entry["chain"]


@dataclass(frozen=True)
class RunFolder:
    """One run of a recipe with one seed: ``<runs>/<recipe name>/seed-<n>``."""

    runs: Path
    recipe_name: str
    seed: int

    @property
    def path(self) -> Path:
        """The folder of this run."""
        return self.runs / self.recipe_name / f"seed-{self.seed}"

    @property
    def store(self) -> Path:
        """The store that all runs beside this one share."""
        return self.runs / "store"

    def begin(self, recipe_text: str, record: Mapping[str, Any]) -> None:
        """Write the resolved recipe and ``run.json``."""
        atomic_write_text(self.path / "recipe.yaml", recipe_text)
        atomic_write_json(self.path / "run.json", dict(record))

    def link(self, stage: str, key: str) -> None:
        """Point ``stages/<stage>`` to its place in the store."""
        atomic_link(self.path / "stages" / stage, self.store / key)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says; raises RunFailed if it cannot be read."""
        remedy = "run the recipe's command again to write it"
        found: dict[str, Any] = read_json(self.path / "run.json", remedy)
        return found

    def write_results(self, results: Any) -> None:
        """Write ``results.json``."""
        atomic_write_json(self.path / "results.json", results)
