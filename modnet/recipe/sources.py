"""Typed parameters of the data sources and the shift suites."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny, model_validator

from modnet.recipe.fields import Choice, KeyedIfSet, Unkeyed
from modnet.registry import DATA, SHIFTS, Params, Smoke


class Source(Params):
    """A data set, or a balanced part of its training images; val is held out before the part is taken.

    ``per_class`` or ``fraction`` choose a part, drawn by ``subset_seed`` (so that all methods see the same images).
    """

    name: str
    per_class: PositiveInt | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    subset_seed: int = 0

    @model_validator(mode="after")
    def _one_part(self) -> "Source":
        if self.per_class is not None and self.fraction is not None:
            raise ValueError("give per_class or fraction, not both")
        return self


class Folder(Source):
    """Own images: ``path/train/CLASS/*`` and ``path/test/CLASS/*``, or ``path/CLASS/*`` (a tenth becomes test)."""

    path: Annotated[str, Unkeyed()]  # the images' fingerprint stands for it in keys
    size: PositiveInt = 64
    channels: Annotated[int, Field(ge=1, le=3)] = 3
    resident: Annotated[bool | None, Unkeyed()] = None  # None: in memory when it is at most 1 GiB as uint8


class Photographs(Source):
    """A published set for which drawn pictures can stand in."""

    synthetic: Annotated[bool, KeyedIfSet()] = False  # drawn pictures of the same shape and classes, to try a recipe


class Cifar(Photographs):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), enlarged to ``size``."""

    size: Annotated[PositiveInt, KeyedIfSet()] = 32


class Pictures(Photographs):
    """A published set of pictures in the data folder, in the folder ``path``, or on Hugging Face as ``hub``."""

    path: Annotated[str | None, Unkeyed()] = None
    hub: Annotated[str | None, Unkeyed()] = None  # such as zh-plus/tiny-imagenet
    size: PositiveInt = 64
    # The shorter side of pictures that are measured (val, test, suites) before their middle is cut out; None: `size`
    resize: Annotated[PositiveInt | None, KeyedIfSet()] = None
    resident: Annotated[bool | None, Unkeyed()] = None  # None: in memory when it is at most 1 GiB as uint8

    @model_validator(mode="after")
    def _margin(self) -> "Pictures":
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} must be at least size {self.size}, which is cut out of it")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> "Pictures":
        if self.path is not None and self.hub is not None:
            raise ValueError("give path or hub, not both")
        return self


class ImageNets(Pictures):
    """ImageNet or a part of its classes; ``renditions`` is the folder of ImageNet-R, for the suite ``-r``."""

    renditions: Annotated[str | None, Unkeyed()] = None  # None: imagenet-r in the data folder


class ClassSubset(Source):
    """Some classes of another source, by name or number; labels are counted anew, in the order of the source."""

    of: Annotated[SerializeAsAny[Params], BeforeValidator(DATA.read), Choice(DATA)]
    classes: Annotated[tuple[int | str, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _part_of_these(self) -> "ClassSubset":
        if isinstance(self.of, Source) and (self.of.per_class is not None or self.of.fraction is not None):
            raise ValueError("give per_class or fraction beside classes, not inside `of`")
        return self


# `pictures`: of the source's own training set, val still among them
def at_hand(source: Photographs) -> bool:
    """Whether pictures are where a source says, or in the data folder; what lies on a hub is not."""
    home = Path(os.environ.get("MODNET_DATA") or "~/.cache/modnet").expanduser()
    entry = DATA.get(source.name)
    if isinstance(source, Pictures):
        if source.path is not None:
            return Path(source.path).expanduser().exists()
        return source.hub is None and any((home / name).is_dir() for name in (entry.base, entry.facts["folder"]))
    return any((home / name).is_file() for name in entry.facts["archives"])


def _few_pictures(params: Photographs, factor: int) -> Photographs:
    """Four training pictures a class; drawn ones where there are none, of a few classes."""
    if params.synthetic or not at_hand(params):
        return params.changed(synthetic=True, per_class=None, fraction=None)
    return params.changed(per_class=min(params.per_class or 4, 4), fraction=None)


_FASHION = {"size": 28, "channels": 1, "classes": 10, "pictures": 60_000}
_DIGITS = {"size": 8, "channels": 1, "classes": 10, "pictures": 1_437}


def _few(per_class: int) -> Smoke:
    """At most so many training images a class."""

    def small(params: Source, factor: int) -> Source:
        return params.changed(per_class=min(params.per_class or per_class, per_class), fraction=None)

    return small


for _name, _per_class, _facts, _about in (
    ("fashion-mnist", 24, _FASHION, "70,000 pictures of clothes, 28 x 28, 10 classes"),
    ("digits", 24, _DIGITS, "1,797 handwritten digits, 8 x 8, 10 classes (inside scikit-learn)"),
):
    _builder = f"modnet.data.sources:{_name.replace('-', '_')}"
    DATA.register(_name, Source, _builder, smoke=_few(_per_class), about=_about, facts=_facts)
for _name, _classes in (("cifar10", 10), ("cifar100", 100)):
    _archives = [f"cifar-{_classes}-{kind}.tar.gz" for kind in ("binary", "python")]
    _cifar: dict[str, Any] = {"size": 32, "channels": 3, "pictures": 50_000, "classes": _classes, "archives": _archives}
    _about = f"60,000 photographs, 32 x 32, {_classes} classes"
    DATA.register(_name, Cifar, f"modnet.data.cifar_sources:{_name}", smoke=_few_pictures, about=_about, facts=_cifar)
_ABOUT = {
    "tiny-imagenet": "110,000 photographs, 64 x 64, 200 classes of ImageNet",
    "imagenet": "ILSVRC 2012: 1,331,167 photographs, 1,000 classes",
    "cub": "CUB-200-2011: 11,788 photographs of birds, 200 species",
}
for _name, _params, _size, _classes, _pictures, _folder in (
    ("tiny-imagenet", ImageNets, 64, 200, 100_000, "tiny-imagenet-200"),
    ("imagenet", ImageNets, 224, 1000, 1_281_167, "ILSVRC2012"),
    ("cub", Pictures, 224, 200, 5_994, "CUB_200_2011"),
):
    _builder = f"modnet.data.published:{_name.replace('-', '_')}"
    _known: dict[str, Any] = {"channels": 3, "classes": _classes, "pictures": _pictures, "folder": _folder}
    _preset = {"size": _size}
    DATA.register(_name, _params, _builder, preset=_preset, smoke=_few_pictures, about=_ABOUT[_name], facts=_known)
_about = "own images, one folder a class"
DATA.register("image-folder", Folder, "modnet.data.folder:image_folder", smoke=_few(24), about=_about)
_about = "some classes of another source: {name: class-subset, of: digits, classes: [0, 1]}"
DATA.register("class-subset", ClassSubset, "modnet.data.subset:class_subset", smoke=_few(24), about=_about)


def facts_of(source: Source) -> dict[str, Any]:
    """What is known of a source without looking for it: its entry's facts, and what its parameters say."""
    if isinstance(source, ClassSubset) and isinstance(source.of, Source):
        whole, count = facts_of(source.of), len(source.classes)
        share = count / whole["classes"] if "classes" in whole else 0
        return {**whole, "classes": count, **({"pictures": round(whole["pictures"] * share)} if share else {})}
    stated = {name: getattr(source, name) for name in ("size", "channels") if hasattr(source, name)}
    return {**DATA.get(source.name).facts, **stated}


class Shift(Params):
    """Changed test sets, a deterministic function of any source's test images: ``<source>-r``, ``<source>-c``."""

    name: str


class Collected(Shift):
    """A shift suite of one source: images of its own, of some of the source's classes, among which one is chosen."""


SHIFTS.register("r", Shift, "modnet.data.shifts:renditions", about="renditions: the style changes, not the content")
SHIFTS.register("c", Shift, "modnet.data.shifts:corruptions", about="common corruptions at 5 severities")
for _name, _count in (("tiny-imagenet-r", 62), ("imagenet-r", 200)):
    _about = f"ImageNet-R: renditions of {_count} classes of {_name.removesuffix('-r')}, predictions masked to them"
    SHIFTS.register(_name, Collected, f"modnet.data.collected:{_name.replace('-', '_')}", about=_about)


def shifts() -> list[str]:
    """The suffixes of the suites that every source has."""
    return [name for name in SHIFTS.names() if not issubclass(SHIFTS.get(name).params, Collected)]


def suite_of(source: Source, shift: str) -> str:
    """The name of a source's shift suite in the registry: its own collected one (``imagenet-r``), else the shift."""
    own = f"{DATA.get(source.name).base}-{shift}"
    return own if own in SHIFTS.names() else shift
