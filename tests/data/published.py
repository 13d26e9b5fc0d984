"""Miniature sets in exactly the published layouts: few pictures, all classes."""

from __future__ import annotations

import dataclasses
import functools
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from modnet.data.layouts import Layout
from modnet.data.wordnet import wnids

Files = dict[str, bytes]
TINY, RENDERED = wnids("tiny"), wnids("r")


@functools.cache
def jpeg(shade: int, width: int = 10, height: int = 8) -> bytes:
    """A grey picture whose value, to within a few steps, is ``shade``."""
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, raw in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return path


def tarred(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write files as a tar."""
    path.write_bytes(tar(files, mode))
    return path


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """The bytes of a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def tiny(train: int = 2) -> Files:
    """tiny-imagenet-200: folders for train, a list for val, an unlabelled test; a val picture for each class."""
    files: Files = {"wnids.txt": "\n".join(reversed(TINY)).encode(), "test/images/test_0.JPEG": jpeg(0)}
    rows = []
    for number, wnid in enumerate(TINY):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        for i in range(train):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(number)
        name = f"val_{199 - number}.JPEG"  # not in the order of the classes
        files[f"val/images/{name}"] = jpeg(number)
        rows.append(f"{name}\t{wnid}\t0\t0\t9\t7\n")
    files["val/val_annotations.txt"] = "".join(rows).encode()
    return {f"tiny-imagenet-200/{name}": raw for name, raw in files.items()}


def renditions(each: int = 1) -> Files:
    """imagenet-r: a folder for each class, and a readme."""
    files = {"imagenet-r/README.txt": b"renditions"}
    for number, wnid in enumerate(RENDERED):
        for i in range(each):
            files[f"imagenet-r/{wnid}/art_{i}.jpg"] = jpeg(number, 20, 8)
    return files


def cub() -> Files:
    """CUB-200-2011: pictures by class, and lists that part them by number."""
    files: Files = {}
    images: list[str] = []
    split: list[str] = []
    for number in range(1, 201):
        label = f"{number:03}.Bird_{number}"
        for i in range(3):
            name = f"{label}/Bird_{number}_{i:04}.jpg"
            files[f"CUB_200_2011/images/{name}"] = jpeg(number)
            images.append(f"{len(images) + 1} {name}\n")
            split.append(f"{len(images)} {int(i < 2)}\n")
    files["CUB_200_2011/images.txt"] = "".join(images).encode()
    files["CUB_200_2011/train_test_split.txt"] = "".join(split).encode()
    return files


def imagenet(root: Path) -> Path:
    """The three archives of ILSVRC 2012; the kit counts classes backwards, and has one that is none."""
    every = wnids("imagenet")
    inner = {f"{w}.tar": tar({f"{w}_{i}.JPEG": jpeg(n % 250) for i in range(2)}) for n, w in enumerate(every)}
    root.mkdir(parents=True)
    tarred(root / "ILSVRC2012_img_train.tar", inner)
    tarred(root / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i % 250) for i in range(1, 1001)})
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    synsets = np.array([(1000 - i, w, 0) for i, w in enumerate(every)] + [(1001, "n00001740", 9)], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in range(1, 1001))
    kit = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    tarred(
        root / "ILSVRC2012_devkit_t12.tar.gz", {f"ILSVRC2012_devkit_t12/data/{n}": r for n, r in kit.items()}, "w:gz"
    )
    return root


def small(layout: Layout, pictures: dict[str, int], **values: object) -> Layout:
    """A layout that counts as whole what a miniature has; its archives have no published hash."""
    return dataclasses.replace(layout, pictures=pictures, **{"archives": {}, "each": {}, **values})  # type: ignore[arg-type]
