"""Preparing published sets from miniature archives: whole or not at all, every fault named."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from modnet.data import fingerprint, layouts, load
from modnet.data.inventory import inventory
from modnet.data.layouts import Layout
from modnet.data.prepare import layout_of, prepare
from modnet.errors import RequestError, RunFailed
from modnet.recipe.sources import Pictures
from tests.data import published as made

TINY = made.small(layouts.TINY_IMAGENET, {"train": 400, "val": 200}, each={"train": 2, "val": 1})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path / "home"))
    monkeypatch.setattr("modnet.data.layouts._TINY_EACH", 2)
    return tmp_path / "home"


def said(layout: Layout, source: Path, target: Path) -> list[str]:
    told: list[str] = []
    prepare(layout, source, target, told.append)
    return told


def fault(layout: Layout, source: Path, target: Path) -> str:
    with pytest.raises(RunFailed) as caught:
        prepare(layout, source, target, lambda text: None)
    assert not target.exists()
    return str(caught.value)


def test_the_zip_of_tiny_imagenet(home: Path, tmp_path: Path) -> None:
    archive = made.zipped(tmp_path / "tiny-imagenet-200.zip", made.tiny())
    assert said(TINY, archive, home / "tiny-imagenet")[-1] == f"Tiny-ImageNet: 600 pictures in {home}/tiny-imagenet"
    assert (home / "tiny-imagenet" / "val" / "n01443537" / "val_199.JPEG").read_bytes() == made.jpeg(0)
    assert not list((home / "tiny-imagenet").rglob("*.txt"))
    assert [p.name for p in home.iterdir()] == ["tiny-imagenet"]
    data = load(Pictures(name="tiny-imagenet", size=8))
    assert (len(data.train), len(data.val), len(data.test)) == (200, 200, 200)
    assert said(TINY, archive, home / "tiny-imagenet") == [f"{home}/tiny-imagenet is prepared already"]


def test_an_index_knows_a_set_wherever_it_lies(home: Path, tmp_path: Path) -> None:
    archive = made.zipped(tmp_path / "t.zip", made.tiny())
    for folder in ("a", "b"):
        said(TINY, archive, tmp_path / folder)
    one, other = (fingerprint(Pictures(name="tiny-imagenet", path=str(tmp_path / f))) for f in ("a", "b"))
    changed = made.tiny() | {"tiny-imagenet-200/val/images/val_199.JPEG": made.jpeg(9)}
    said(TINY, made.zipped(tmp_path / "u.zip", changed), tmp_path / "c")
    assert one == other != fingerprint(Pictures(name="tiny-imagenet", path=str(tmp_path / "c")))
    index = tmp_path / "a" / "index.json"
    index.write_text(index.read_text().replace('"set": "tiny-imagenet"', '"set": "cub"'))
    with pytest.raises(RunFailed, match="holds cub, not tiny-imagenet"):
        load(Pictures(name="tiny-imagenet", path=str(tmp_path / "a")))


@pytest.mark.parametrize("packed", [True, False])
def test_every_missing_wrong_or_foreign_picture_is_named(tmp_path: Path, packed: bool) -> None:
    files, top = made.tiny(), "tiny-imagenet-200"
    del files[f"{top}/train/n01443537/images/n01443537_1.JPEG"]
    del files[f"{top}/val/images/val_199.JPEG"]
    files[f"{top}/train/n01629819/images/n01629819_0.JPEG"] = made.jpeg(1)[:300]
    files[f"{top}/train/n99999999/images/n99999999_0.JPEG"] = made.jpeg(1)
    source = made.zipped(tmp_path / "t.zip", files) if packed else made.put(tmp_path / "t", files)
    told = fault(TINY, source, tmp_path / "out")
    for part in (
        "n01629819_0.JPEG cannot be read as an image (",
        "n99999999 is no class of Tiny-ImageNet",
        "missing: train/n01443537/n01443537_1.JPEG",
        "missing: val/n01443537/val_199.JPEG",
        "train/n01443537: 1 pictures, 2 were published",
        "train: 399 pictures, 400 were published",
    ):
        assert part in told
    many = {n: raw for n, raw in files.items() if "/train/n02" not in n}
    assert " more" in fault(TINY, made.zipped(tmp_path / "u.zip", many), tmp_path / "out").splitlines()[-1]


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    files = made.tiny()
    last = "tiny-imagenet-200/val/images/val_0.JPEG"
    cut = {name: raw for name, raw in files.items() if name != last}
    target, partial = tmp_path / "out", tmp_path / ".out.partial"
    fault(TINY, made.put(tmp_path / "t", cut), target)
    first = partial / "train" / "n01443537" / "n01443537_0.JPEG"
    first.with_name("n01443537_1.JPEG").write_bytes(b"half")  # a write that did not end
    before = first.stat().st_ino
    made.put(tmp_path / "t", files)
    said(TINY, tmp_path / "t", target)
    assert (target / "train" / "n01443537" / "n01443537_0.JPEG").stat().st_ino == before
    assert (target / "train" / "n01443537" / "n01443537_1.JPEG").read_bytes() == made.jpeg(0)
    assert not partial.exists()


def test_archives_are_checked_against_the_published_md5(tmp_path: Path) -> None:
    archive = made.zipped(tmp_path / "tiny-imagenet-200.zip", made.tiny())
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    layout = made.small(TINY, {"train": 400, "val": 200}, archives={archive.name: right})
    assert said(layout, tmp_path, tmp_path / "out")[0] == "tiny-imagenet-200.zip: MD5 as published"
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert "its MD5 is" in fault(layout, archive, tmp_path / "other")
    assert layouts.TINY_IMAGENET.archives == {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_truncated_archive_is_named(tmp_path: Path, suffix: str) -> None:
    write = made.zipped if suffix == "zip" else made.tarred
    archive = write(tmp_path / f"t.{suffix}", made.tiny())
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert f"t.{suffix} is damaged or incomplete" in fault(TINY, archive, tmp_path / "out")


def test_a_folder_in_the_prepared_layout_only_gets_an_index(tmp_path: Path) -> None:
    said(TINY, made.zipped(tmp_path / "t.zip", made.tiny()), tmp_path / "out")
    index = (tmp_path / "out" / "index.json").read_bytes()
    (tmp_path / "out" / "index.json").unlink()
    said(TINY, tmp_path / "out", tmp_path / "out")
    assert (tmp_path / "out" / "index.json").read_bytes() == index
    official = made.put(tmp_path, made.tiny()) / "tiny-imagenet-200"
    with pytest.raises(RequestError, match=r"is not in the prepared layout: train/.* would be train/"):
        prepare(TINY, official, official, lambda text: None)


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file or folder"):
        prepare(TINY, tmp_path / "nothing", tmp_path / "out", print)
    (tmp_path / "own").mkdir()
    with pytest.raises(RequestError, match="holds no pictures of Tiny-ImageNet"):
        prepare(TINY, tmp_path / "own", tmp_path / "out", print)
    with pytest.raises(RequestError, match="is there already and modnet did not prepare it"):
        prepare(TINY, tmp_path, tmp_path / "own", print)
    with pytest.raises(RequestError, match="did you mean 'imagenet-r'"):
        layout_of("imagenetr")


def test_a_name_that_points_outside_writes_nothing_there(tmp_path: Path) -> None:
    evil = made.tiny() | {"../../evil/train/n01443537/images/x.JPEG": made.jpeg(0)}
    told = fault(TINY, made.zipped(tmp_path / "t.zip", evil), tmp_path / "deep" / "er" / "out")
    assert "train/n01443537: 3 pictures" in told
    assert not (tmp_path / "evil").exists()


def test_the_tgz_of_cub(home: Path, tmp_path: Path) -> None:
    layout = made.small(layouts.CUB, {"train": 400, "val": 200})
    said(layout, made.tarred(tmp_path / "CUB_200_2011.tgz", made.cub(), "w:gz"), home / "cub")
    data = load(Pictures(name="cub", size=8))
    assert (len(data.train) + len(data.val), len(data.test), data.classes[0]) == (400, 200, "001.Bird_1")
    files = made.cub()
    del files["CUB_200_2011/images/007.Bird_7/Bird_7_0000.jpg"]
    told = fault(layout, made.tarred(tmp_path / "c.tgz", files, "w:gz"), tmp_path / "out")
    assert "missing: train/007.Bird_7/Bird_7_0000.jpg" in told


def test_the_tar_of_imagenet_r(home: Path, tmp_path: Path) -> None:
    layout = made.small(layouts.IMAGENET_R, {"": 200})
    said(layout, made.tarred(tmp_path / "imagenet-r.tar", made.renditions()), home / "imagenet-r")
    assert (home / "imagenet-r" / "n01443537" / "art_0.jpg").is_file()
    assert "all: 400 pictures, 200 were published" in fault(
        layout, made.tarred(tmp_path / "i.tar", made.renditions(2)), tmp_path / "out"
    )


def test_the_tars_of_imagenet(home: Path, tmp_path: Path) -> None:
    archives = made.imagenet(tmp_path / "archives")
    hashes = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in archives.iterdir()}
    assert hashes.keys() == layouts.IMAGENET.archives.keys()
    layout = made.small(layouts.IMAGENET, {"train": 2000, "val": 1000}, archives=hashes)
    said(layout, archives, home / "imagenet")
    # the kit's class 1 is the last of ours, and picture 1 is of its class 1
    assert (home / "imagenet" / "val" / layout.classes[-1] / "ILSVRC2012_val_00000001.JPEG").is_file()
    data = load(Pictures(name="imagenet", size=8))
    assert (len(data.train) + len(data.val), len(data.test)) == (2000, 1000)
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(RequestError, match="put ILSVRC2012_devkit_t12.tar.gz beside them"):
        prepare(layout, archives, tmp_path / "out", lambda text: None)


def test_what_lies_in_the_data_folder(home: Path, tmp_path: Path) -> None:
    states = {name: state for name, _, state in inventory()}
    assert states["tiny-imagenet"] == "from http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert states["cifar10"] == "is fetched when it is first read"
    made.put(home, made.renditions())
    made.tarred(home / "CUB_200_2011.tgz", {})
    said(TINY, made.zipped(tmp_path / "t.zip", made.tiny()), home / "tiny-imagenet")
    states = {name: state for name, _, state in inventory()}
    assert states["tiny-imagenet"] == "tiny-imagenet, prepared"
    assert states["imagenet-r"] == "imagenet-r, as unpacked"
    assert states["cub"] == "CUB_200_2011.tgz; modnet data prepare cub --from CUB_200_2011.tgz"
    assert tarfile.is_tarfile(home / "CUB_200_2011.tgz")
