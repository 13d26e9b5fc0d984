"""What lies in the data folder."""

from __future__ import annotations

from pathlib import Path

from modnet.data import cifar
from modnet.data.fashion_mnist import FILES, SYSTEM
from modnet.data.files import data_home
from modnet.data.index import INDEX
from modnet.data.layouts import LAYOUTS, Layout
from modnet.data.prepare import leftover
from modnet.registry import DATA


def inventory() -> list[tuple[str, str, str]]:
    """For every source and picture set: its name, what it is, and where it is or how it comes here."""
    names = [*DATA.names(), *(name for name in LAYOUTS if name not in DATA)]
    home = f"{data_home()}/"
    abouts = [DATA.get(name).about if name in DATA else LAYOUTS[name].title for name in names]
    return [(name, about, state(name).replace(home, "")) for name, about in zip(names, abouts, strict=True)]


def state(name: str) -> str:
    """Where a source lies; nothing is read or fetched for the answer."""
    home = data_home()
    if name in LAYOUTS:
        return _published(LAYOUTS[name], home)
    if name == "fashion-mnist":
        folders = (home / "FashionMNIST" / "raw", SYSTEM)
        found = next((f for f in folders if any((f / file).exists() for n in FILES for file in (n, f"{n}.gz"))), None)
        return str(found) if found else "is fetched when it is first read"
    if name in ("cifar10", "cifar100"):
        layout = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
        paths = [home / archive.file for archive in (layout.binary, layout.python)]
        return next((str(path) for path in paths if path.is_file()), "is fetched when it is first read")
    return ""


def _published(layout: Layout, home: Path) -> str:
    folder = home / layout.name
    if (folder / INDEX).is_file():
        return f"{folder}, prepared"
    if leftover(folder):
        return "its preparation was stopped; the same command goes on"
    found = next((home / n for n in (layout.name, layout.folder) if (home / n).is_dir()), None)
    if found is not None:
        return f"{found}, as unpacked"
    archive = next((home / name for name in layout.archives if (home / name).is_file()), None)
    if archive is not None:
        return f"{archive}; modnet data prepare {layout.name} --from {archive}"
    return f"from {layout.where}"
