"""The published picture sets as sources: read where they lie, in the official layout or in the prepared one.

A set's official val pictures are our test set; our val is held out of train, as for every source.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from modnet.chain import Port
from modnet.data import layouts
from modnet.data.files import data_home
from modnet.data.folder import IMAGENET_MOMENTS, Listing, fingerprint, held, read_again, splits
from modnet.data.index import read_index
from modnet.data.large import File, Reader
from modnet.data.layouts import Layout
from modnet.data.sources import Description
from modnet.data.synthetic import drawn
from modnet.data.trees import ARCHIVES, members
from modnet.errors import RequestError
from modnet.recipe.sources import ImageNets, Pictures

Files = dict[tuple[str, str], list[File]]  # by part and class


def tiny_imagenet(params: ImageNets) -> Description:
    """Tiny-ImageNet (Le and Yang 2015): 100,000 + 10,000 photographs, 64 x 64, of 200 classes of ImageNet."""
    return _described(layouts.TINY_IMAGENET, params)


def imagenet(params: ImageNets) -> Description:
    """ILSVRC 2012 (Russakovsky et al. 2015): 1,281,167 + 50,000 photographs of 1,000 classes."""
    return _described(layouts.IMAGENET, params)


def cub(params: Pictures) -> Description:
    """CUB-200-2011 (Wah et al. 2011): 5,994 + 5,794 photographs of 200 species of birds."""
    return _described(layouts.CUB, params)


def _described(layout: Layout, params: Pictures) -> Description:
    from modnet.data import tables

    if params.synthetic:
        names = layout.classes or tuple(f"{number:03}" for number in range(layout.count))
        listing, content = drawn(names, params.size), "synthetic"
        where = "synthetic pictures"
    elif params.hub is not None or (params.path is not None and tables.is_table(Path(params.path).expanduser())):
        listing, content = tables.listed(layout, params)
        where = str(params.hub or params.path)
    else:
        root = place(layout, params.path)
        listing, content = listed(layout, root, ("train", "val"))
        where = str(root)
    port = Port.of("image", channels=3, size=params.size)
    resident = held(listing, port, params.resident)
    # The customary constants, whether or not the images are held, so that all parts and suites see the same inputs.
    facts = json.dumps([layout.name, content, params.size, *([] if params.resize is None else [params.resize])])
    reader, wide = Reader(params.size, 3), Reader(params.size, 3, resize=params.resize)
    read = functools.partial(splits, listing, reader, resident, params.name, where, wide)
    measured = None if params.resize is None else functools.partial(read_again, listing, wide, resident)
    return Description(listing.classes, port, facts, read, IMAGENET_MOMENTS, measured)


def place(layout: Layout, path: str | None) -> Path:
    """The folder of a set: the one that is given, or one in the data folder; raises RequestError that says what to do.

    In the data folder a prepared set goes before what the archive unpacks to.
    """
    get = ", ".join(layout.archives)
    how = f"Get {get} from {layout.where}, then: modnet data prepare {layout.name} --from FOLDER_OR_ARCHIVE"
    if path is not None:
        root = Path(path).expanduser()
        if root.is_file() and root.name.endswith(ARCHIVES):
            raise RequestError(
                f"{root} is an archive, whose pictures cannot be read one by one. Prepare it once: "
                f"modnet data prepare {layout.name} --from {root}"
            )
        if not root.is_dir():
            raise RequestError(f"there is no folder {root} with {layout.title}. {how}")
        return root
    candidates = [data_home() / name for name in dict.fromkeys((layout.name, layout.folder))]
    found = next((root for root in candidates if root.is_dir()), None)
    if found is None:
        raise RequestError(f"{layout.title} is not in {data_home()}. {how}")
    return found


def listed(layout: Layout, root: Path, parts: tuple[str, str], only: tuple[str, ...] = ()) -> tuple[Listing, str]:
    """The pictures of a folder and what stands for their contents; ``only``: of these classes alone.

    Raises RequestError naming a class that is unknown or has no pictures.
    """
    index = read_index(root, layout)
    if index is not None:
        files: Files = {(part, label): [root / part / label / f for f in some] for part, label, some in index.files}
    else:
        files = scanned(layout, root)
    classes = layout.classes or tuple(sorted({label for _, label in files}))
    check_classes(layout, root, files, classes, only or classes, parts)
    numbers = {label: number for number, label in enumerate(classes) if not only or label in only}
    train, test = (
        tuple((file, numbers[label]) for label in numbers for file in sorted(files.get((part, label), []), key=str))
        for part in parts
    )
    listing = Listing(classes, train if parts[0] != parts[1] else (), test)
    return listing, index.sha256 if index is not None else fingerprint(listing)


def scanned(layout: Layout, root: Path) -> Files:
    """The pictures below a folder by part and class; archives in it are left closed."""
    placer = layout.placer(root)
    files: defaultdict[tuple[str, str], list[File]] = defaultdict(list)
    for member in members(root):
        found = placer(member.name)
        if found is not None and member.path is not None:
            files[found.part, found.label].append(member.path)
    return dict(files)


def check_classes(
    layout: Layout, root: Path, files: Files, classes: Sequence[str], wanted: Sequence[str], parts: Sequence[str]
) -> None:
    """Raise RequestError for a class that the set does not have, or one that is wanted and has no picture."""
    unknown = sorted({label for _, label in files} - set(classes))
    if unknown:
        raise RequestError(f"{root}: {unknown[0]} is no class of {layout.title}, which has {layout.count}.")
    for part in dict.fromkeys(parts):
        missing = [label for label in wanted if not files.get((part, label))]
        where = f"{root}{'/' if part else ''}{part}"
        if len(missing) == len(wanted):
            raise RequestError(f"{where} has no pictures of {layout.title}: it should hold a folder for each class.")
        if missing:
            raise RequestError(
                f"{where} has no pictures of {len(missing)} of the {layout.count} classes, {missing[0]} the first."
            )
    if len(classes) != layout.count:
        raise RequestError(f"{root} has {len(classes)} classes, {layout.title} has {layout.count}.")
