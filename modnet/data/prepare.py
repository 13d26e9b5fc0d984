"""Preparing a published set: from its archives or folders to ``PART/CLASS/FILE`` with an index, whole or not at all.

Everything is checked on the way: the archives' published MD5, every picture of a source without one, and the number of
pictures in each part and class. Pictures are collected in a hidden folder beside the target, which takes its name at
the end; the same command goes on where an earlier one was stopped. Nothing is unpickled, and no name inside an archive
decides where a file is written but by its class and its last part.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from modnet.data.index import INDEX, Index, read_index, write_index
from modnet.data.layouts import LAYOUTS, Layout, Place
from modnet.data.trees import Member, members
from modnet.errors import RequestError, RunFailed
from modnet.registry import nearest
from modnet.store import disk_errors, sync

_SHOWN = 10  # problems that are told one by one
_EVERY = 10_000
_ELSEWHERE = "give another place with --to DIR"

Say = Callable[[str], None]


def layout_of(name: str) -> Layout:
    """The layout of a set's name; raises RequestError for a source that needs no preparation or is none."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    near = nearest(name, list(LAYOUTS))
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RequestError(f"{name!r} is nothing to prepare; there are {', '.join(LAYOUTS)}{hint}")


def prepare(layout: Layout, source: Path, target: Path, say: Say) -> Index:
    """Make the prepared folder ``target`` of an archive, or of a folder with archives or pictures.

    Where ``target`` is ``source``, its files stay as they are and only get an index. Raises RequestError if there is
    nothing to prepare from, RunFailed naming the archive or the pictures that are missing, damaged or too many.
    """
    in_place = target.resolve() == source.resolve()
    if not in_place and target.exists():
        index = read_index(target, layout)
        if index is None:
            raise RequestError(f"{target} is there already and modnet did not prepare it; move it, or {_ELSEWHERE}.")
        say(f"{target} is prepared already")
        return index
    (alone,) = layout.archives if len(layout.archives) == 1 else ("",)
    if alone and (source / alone).is_file():
        source = source / alone
    verified = check_archives(layout, source, say)
    folder = target if in_place else target.with_name(f".{target.name}.partial")
    work = _Preparation(layout, source, folder, in_place, verified, say)
    with disk_errors(target, _ELSEWHERE):
        index = work.run()
        write_index(folder, layout, index)
        if not in_place:
            folder.replace(target)
            sync(target.parent)
    say(f"{layout.title}: {sum(layout.pictures.values()):,} pictures in {target}")
    return index


def check_archives(layout: Layout, source: Path, say: Say) -> set[str]:
    """The published archives at ``source`` whose MD5 is right; raises RunFailed naming one whose MD5 is not."""
    paths = [source] if source.is_file() else [source / name for name in layout.archives]
    right = set()
    for path in paths:
        expected = layout.archives.get(path.name)
        if expected is None or not path.is_file():
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            raise RunFailed(
                f"{path} is not the published file: its MD5 is {found}, expected {expected}. Fetch it again from "
                f"{layout.where}."
            )
        say(f"{path.name}: MD5 as published")
        right.add(path.name)
    return right


@dataclass
class _Preparation:
    """One set on its way into ``folder``."""

    layout: Layout
    source: Path
    folder: Path
    in_place: bool
    verified: set[str]
    say: Say
    hashes: dict[Place, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.placer = self.layout.placer(self.source)

    def run(self) -> Index:
        """Put every picture in its place; gives the index, or raises RunFailed with all that is wrong."""
        for place, member in self.pictures():
            raw = member.read()
            self.hashes[place] = hashlib.sha256(raw).hexdigest()
            if not self.trusted(member) and (wrong := unreadable(raw)):
                self.problems.append(f"{member.name} cannot be read as an image ({wrong})")
            if not self.in_place:
                self.put(place, raw)
            if len(self.hashes) % _EVERY == 0:
                self.say(f"{len(self.hashes):,} pictures")
        if not self.hashes:
            raise RequestError(f"{self.source} holds no pictures of {self.layout.title} in a layout that is known.")
        self.problems += self.counted()
        if self.problems:
            more = len(self.problems) - _SHOWN
            told = "\n".join(f"  {problem}" for problem in self.problems[:_SHOWN])
            rest = f"\n  and {more} more" if more > 0 else ""
            raise RunFailed(f"{self.source} is not {self.layout.title} as it was published:\n{told}{rest}")
        return self.index()

    def pictures(self) -> Iterator[tuple[Place, Member]]:
        """Every picture of the source once, with its place; classes that the set does not have are noted."""
        for member in members(self.source, self.layout.archives):
            place = self.placer(member.name)
            if place is None or place in self.hashes:
                continue
            if self.layout.classes and place.label not in self.layout.classes:
                self.problems.append(f"{member.name}: {place.label} is no class of {self.layout.title}")
            elif self.in_place and member.path != self.path(place):
                raise RequestError(
                    f"{self.source} is not in the prepared layout: {member.name} would be "
                    f"{self.path(place).relative_to(self.folder)}. Leave --to out, or name another folder."
                )
            else:
                yield place, member

    def trusted(self, member: Member) -> bool:
        """Whether a member comes from an archive whose published hash is right."""
        return not self.verified.isdisjoint(member.name.split("/"))

    def path(self, place: Place) -> Path:
        """Where a picture lies when it is prepared."""
        return self.folder / place.part / place.label / place.file

    def put(self, place: Place, raw: bytes) -> None:
        """Write a picture, unless an earlier attempt wrote it."""
        path = self.path(place)
        if path.is_file() and path.stat().st_size == len(raw) and path.read_bytes() == raw:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(raw)
        temporary.replace(path)

    def counted(self) -> Iterator[str]:
        """What is missing or too much: of each part, then by name where the set's own lists name its pictures."""
        parts = Counter(place.part for place in self.hashes)
        for part, expected in self.layout.pictures.items():
            if parts[part] != expected:
                yield f"{part or 'all'}: {parts[part]:,} pictures, {expected:,} were published"
        labels = {place.label for place in self.hashes}
        if len(labels) != self.layout.count:
            yield f"{len(labels)} classes, {self.layout.count} were published"
        for place in sorted(self.placer.listed() - self.hashes.keys()):
            yield f"missing: {'/'.join(place)}"
        yield from self._by_class()

    def _by_class(self) -> Iterator[str]:
        classes = Counter((place.part, place.label) for place in self.hashes)
        for part, expected in self.layout.each.items():
            for label in self.layout.classes:
                if classes[part, label] != expected:
                    yield f"{part}/{label}: {classes[part, label]} pictures, {expected} were published"

    def index(self) -> Index:
        """The index of what was put in place; its hash does not depend on the order in an archive."""
        parts: dict[str, dict[str, list[str]]] = {}
        digest = hashlib.sha256()
        for place in sorted(self.hashes):
            parts.setdefault(place.part, {}).setdefault(place.label, []).append(place.file)
            digest.update(f"{'/'.join(place)} {self.hashes[place]}\n".encode())
        return Index(parts, digest.hexdigest())


def unreadable(raw: bytes) -> str:
    """Why bytes are no whole image; empty if they are one. JPEGs are decoded at an eighth of their size."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return re.sub(r" <_io.BytesIO .*>", "", str(error))
    return ""


def leftover(target: Path) -> bool:
    """Whether an earlier preparation of ``target`` was stopped."""
    return target.with_name(f".{target.name}.partial").is_dir() and not (target / INDEX).is_file()
