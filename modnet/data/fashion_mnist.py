"""Where Fashion-MNIST (Xiao et al. 2017) comes from: this disk, its mirror, or Debian's package, always checked.

The SHA-256 are of the *unpacked* idx files, since mirror and Debian pack the same bytes with different gzip headers.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from modnet.data.files import ELSEWHERE, Unreachable, data_home, download, log, mend
from modnet.data.idx import unpacked
from modnet.errors import RunFailed
from modnet.store import atomic_file

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)  # torchvision's
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package installs
PACKAGE = "dataset-fashion-mnist"
_PLACE = Path("FashionMNIST") / "raw"  # torchvision's layout


def read() -> dict[str, bytes]:
    """The four idx files by name, unpacked and checked; fetched and kept in the data folder if they are not there.

    Raises RunFailed if a file is corrupt, or if no place gives the files: the message says why each one did not.
    """
    for folder in (data_home() / _PLACE, SYSTEM):
        found = _local(folder)
        if found is not None:
            log.info("Fashion-MNIST: read from %s", folder)
            return found
    return _fetched(data_home() / _PLACE)


def _local(folder: Path) -> dict[str, bytes] | None:
    """The files of a folder, gz or plain; None if one is missing."""
    paths = {}
    for name in FILES:
        candidates = [folder / f"{name}.gz", folder / name]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            return None
        paths[name] = path
    return {name: _checked(name, path, mend(path)) for name, path in paths.items()}


def _checked(name: str, path: Path, remedy: str = "") -> bytes:
    raw = unpacked(path, remedy)
    found = hashlib.sha256(raw).hexdigest()
    if found != FILES[name]:
        raise RunFailed(
            f"{path} is not the published file: its content has SHA-256 {found[:16]}…, expected "
            f"{FILES[name][:16]}…. {remedy}".rstrip()
        )
    return raw


def _fetched(target: Path) -> dict[str, bytes]:
    """Fetch from the first place that gives all four files, and keep them in ``target``."""
    places: list[tuple[str, Callable[[Path], Path]]] = [
        *((mirror, lambda folder, mirror=mirror: _from_mirror(mirror, folder)) for mirror in MIRRORS),
        (f"Debian's package {PACKAGE}", _from_debian),
    ]
    failures = []
    for label, fetch in places:
        log.info("Fashion-MNIST: not on this disk; trying %s", label)
        with tempfile.TemporaryDirectory(prefix="modnet-") as scratch:
            try:
                folder = fetch(Path(scratch))
            except Unreachable as error:
                failures.append(f"{label}: {error}")
                continue
            try:
                found = {name: _checked(name, folder / f"{name}.gz") for name in FILES}
            except RunFailed as error:
                failures.append(f"{label}: {error}")
                continue
            for name in FILES:
                with atomic_file(target / f"{name}.gz", ELSEWHERE) as path:
                    shutil.copyfile(folder / f"{name}.gz", path)
        log.info("Fashion-MNIST: came from %s; kept in %s", label, target)
        return found
    raise RunFailed(
        "Fashion-MNIST is not on this disk and could not be fetched. "
        + "; ".join(failures)
        + f". By hand: put {', '.join(f'{name}.gz' for name in FILES)} into {target}."
    )


def _from_mirror(mirror: str, folder: Path) -> Path:
    for name in sorted(FILES, key=lambda n: "images" in n):  # the small ones first
        download(f"{mirror}{name}.gz", folder / f"{name}.gz")
    return folder


def _from_debian(folder: Path) -> Path:
    """Fetch and unpack the package into ``folder`` without installing it, which needs no root.

    Where apt has no package lists, they are fetched as well, into ``folder`` and not into the system.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unreachable(f"there is no {tool} here")
    folder.chmod(0o755)
    complaint = _run(["apt-get", "download", "-q", PACKAGE], folder)
    if "Unable to locate" in complaint:
        complaint = _with_own_lists(folder)
    packages = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise Unreachable(complaint or "apt-get left no package")
    complaint = _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], folder)
    if complaint:
        raise Unreachable(complaint)
    return folder / "unpacked" / SYSTEM.relative_to("/")


def _with_own_lists(folder: Path) -> str:
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    log.info("Fashion-MNIST: apt has no package lists; fetching them into a temporary folder")
    complaint = _run(["apt-get", *own, "update", "-q"], folder)
    complaint = complaint or _run(["apt-get", *own, "download", "-q", PACKAGE], folder)
    return complaint and f"{complaint} (run 'apt-get update' as root, then try again)"


def _run(command: list[str], folder: Path) -> str:
    """Run a command in a folder; gives its complaint, empty if it ended well."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(f"{command[0]}: {error}") from error
    if done.returncode == 0:
        return ""
    complaint = (done.stderr.strip() or done.stdout.strip()).replace("\n", " ")
    return complaint or f"{command[0]} ended with {done.returncode}"
