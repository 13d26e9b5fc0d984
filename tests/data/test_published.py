"""Published sets, read where they lie: the right classes in the right order, and every fault named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modnet.data import Dataset, fingerprint, load, load_suite, port_of
from modnet.data.large import FolderSplit
from modnet.data.wordnet import wnids
from modnet.errors import RequestError, RunFailed
from modnet.recipe.sources import Source
from modnet.registry import DATA
from tests.data import published as made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def source(name: str, **values: object) -> Source:
    found = DATA.read({"name": name, "size": 8, **values})
    assert isinstance(found, Source)
    return found


def shades(data: Dataset) -> bool:
    """Whether every picture's grey value is the number of its class, as the miniatures are drawn."""
    splits = (data.train, data.val, data.test)
    return all((s.images.float().mean((1, 2, 3)) - s.labels).abs().max() < 3 for s in splits)


def test_the_families_of_classes() -> None:
    every, tiny, rendered = wnids("imagenet"), wnids("tiny"), wnids("r")
    assert (len(every), len(tiny), len(rendered), len(wnids("tiny", "r"))) == (1000, 200, 200, 62)
    assert list(every) == sorted(every)
    assert set(wnids("tiny", "r")) == set(tiny) & set(rendered)
    assert (every[0], tiny[0], rendered[0]) == ("n01440764", "n01443537", "n01443537")


def test_tiny_imagenet_as_unpacked(home: Path) -> None:
    made.put(home, made.tiny())
    data = load(source("tiny-imagenet"))
    assert data.classes == wnids("tiny")
    assert (len(data.train), len(data.val), len(data.test)) == (200, 200, 200)
    assert data.test.labels.tolist() == list(range(200))
    assert shades(data)
    assert port_of(source("tiny-imagenet")) == (data.port, 200)
    disk = load(source("tiny-imagenet", resident=False, path=str(home / "tiny-imagenet-200")))
    assert isinstance(disk.test, FolderSplit)
    assert torch.equal(disk.test.images, data.test.images)
    assert (disk.mean, disk.std) == (data.mean, data.std), "held or not, networks see the same inputs"


def test_cub_is_parted_by_its_own_lists(tmp_path: Path) -> None:
    data = load(source("cub", path=str(made.put(tmp_path, made.cub()) / "CUB_200_2011")))
    assert (len(data.train) + len(data.val), len(data.test)) == (400, 200)
    assert data.classes[199] == "200.Bird_200"
    images = data.test.images.float().mean((1, 2, 3))
    assert (images - data.test.labels - 1).abs().max() < 3


def test_imagenet_sorted_into_folders(tmp_path: Path) -> None:
    files = {f"{p}/{w}/{i}.JPEG": made.jpeg(n % 200) for p in ("train", "val") for i in range(1)
             for n, w in enumerate(wnids("imagenet"))}  # fmt: skip
    data = load(source("imagenet", path=str(made.put(tmp_path / "i", files)), resident=False))
    assert (len(data.classes), len(data.test), int(data.test.labels[999])) == (1000, 1000, 999)
    assert DATA.read("imagenet").size == 224


def test_what_is_not_there_says_how_to_get_it(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is not in .*/home\. Get tiny-imagenet-200\.zip from .* data prepare tiny"):
        load(source("tiny-imagenet"))
    with pytest.raises(RequestError, match=r"there is no folder .*/nowhere"):
        load(source("cub", path=str(tmp_path / "nowhere")))
    archive = made.zipped(tmp_path / "tiny-imagenet-200.zip", {})
    with pytest.raises(RequestError, match=r"is an archive.*modnet data prepare tiny-imagenet --from .*200\.zip"):
        load(source("tiny-imagenet", path=str(archive)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("drop", "train/n01443537/images"), "train has no pictures of 1 of the 200 classes, n01443537 the first"),
        (("drop", "train/"), "train has no pictures of Tiny-ImageNet"),
        (("add", "train/n99999999/images/a.JPEG"), "n99999999 is no class of Tiny-ImageNet, which has 200"),
        (("add", "val/images/val_777.JPEG"), "does not say of which class val/images/val_777.JPEG is"),
        (("list", "val_0.JPEG n01443537"), "line 1 of val_annotations.txt is not a file name, a tab"),
    ],
)
def test_a_broken_folder_is_one_clear_sentence(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    files, (kind, name) = made.tiny(1), change
    if kind == "drop":
        files = {n: raw for n, raw in files.items() if name not in n}
    elif kind == "add":
        files[f"tiny-imagenet-200/{name}"] = made.jpeg(0)
    else:
        files["tiny-imagenet-200/val/val_annotations.txt"] = name.encode()
    with pytest.raises((RequestError, RunFailed), match=told):
        load(source("tiny-imagenet", path=str(made.put(tmp_path / "t", files) / "tiny-imagenet-200")))


def test_the_62_classes_of_tiny_imagenet_r(home: Path) -> None:
    made.put(home, made.renditions())
    suite = load_suite("tiny-imagenet-r", source("tiny-imagenet"), "r")  # Tiny-ImageNet itself is not here
    assert suite.mask is not None
    masked = [label for label, may in zip(wnids("tiny"), suite.mask.tolist(), strict=True) if may]
    assert masked == sorted(set(wnids("tiny")) & set(wnids("r")))
    test = suite.parts["test"]
    assert [suite.dataset.classes[y] for y in test.labels] == masked
    shade = torch.tensor([wnids("r").index(wnid) for wnid in masked])
    assert (test.images.float().mean((1, 2, 3)) - shade).abs().max() < 3


def test_imagenet_r_has_a_fifth_of_the_classes(home: Path) -> None:
    made.put(home, made.renditions())
    suite = load_suite("x", source("imagenet", resident=True), "r", limit=50)
    assert suite.mask is not None
    assert (int(suite.mask.sum()), len(suite.mask)) == (200, 1000)
    labels = suite.parts["test"].labels
    assert (len(labels), len(labels.unique())) == (50, 50), "a limit takes images of all classes"
    assert suite.dataset.classes[labels[0]] == wnids("r")[0]


def test_tiny_renditions_keep_all_of_the_picture_and_not_its_shape(home: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    made.put(home, made.renditions())
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8] = 255  # a white third, which a crop of the middle would lose
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (home / "imagenet-r" / "n01443537" / "art_0.jpg").write_bytes(file.getvalue())
    image = load_suite("x", source("tiny-imagenet"), "r").parts["test"].images[0]
    assert image[0, :, 0].min() > 250
    assert image[0, :, 4:].max() < 5
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8)))  # Pillow's default, bicubic
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_a_folder_of_renditions_may_be_named_and_other_suites_stay_computed(home: Path, tmp_path: Path) -> None:
    made.put(tmp_path, made.renditions())
    made.put(home, made.tiny(1))
    named = source("tiny-imagenet", renditions=str(tmp_path / "imagenet-r"))
    assert load_suite("x", named, "r").dataset.name == "tiny-imagenet-r"
    computed = load_suite("x", named, "c")
    assert computed.mask is None
    assert len(computed.parts) == 70


def test_fingerprints_of_suite_and_source_follow_their_own_pictures(home: Path) -> None:
    made.put(home, {**made.renditions(), **made.tiny(1)})
    params = source("tiny-imagenet")
    before = fingerprint(params), fingerprint(params, "r")
    (home / "imagenet-r" / "n01443537" / "art_0.jpg").write_bytes(made.jpeg(99))
    assert fingerprint(params) == before[0]
    assert fingerprint(params, "r") != before[1]


def test_a_truncated_picture_is_named(home: Path) -> None:
    made.put(home, made.tiny(1))
    bad = home / "tiny-imagenet-200" / "train" / "n01443537" / "images" / "n01443537_0.JPEG"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(RunFailed, match=r"cannot read the image .*n01443537_0\.JPEG"):
        load(source("tiny-imagenet"))


# ---- tables of Hugging Face's datasets ----------------------------------------------------------


def table(count: int, names: list[str] | None = None):
    import datasets

    names = names or list(reversed(wnids("tiny")))  # in another order than ours
    rows = [(n, names[n % 200]) for n in range(200 * count)]
    shade = {wnid: number for number, wnid in enumerate(wnids("tiny"))}
    images = [{"bytes": made.jpeg(shade.get(wnid, 0)), "path": None} for _, wnid in rows]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": [n % 200 for n, _ in rows]}, features=features)


def saved(path: Path, **splits: object) -> str:
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def test_a_saved_table_and_its_parquet_shards_are_the_same_set(tmp_path: Path) -> None:
    train, valid = table(2), table(1)
    disk = load(source("tiny-imagenet", path=saved(tmp_path / "disk", train=train, valid=valid)))
    assert (len(disk.train), len(disk.val), len(disk.test)) == (200, 200, 200)
    assert disk.classes == wnids("tiny")
    assert shades(disk)
    (tmp_path / "shards" / "data").mkdir(parents=True)
    for i in range(2):
        train.shard(2, i).to_parquet(str(tmp_path / "shards" / "data" / f"train-0000{i}-of-00002.parquet"))
    valid.to_parquet(str(tmp_path / "shards" / "data" / "valid-00000-of-00001.parquet"))
    shards = load(source("tiny-imagenet", path=str(tmp_path / "shards"), resident=False))
    assert isinstance(shards.train, FolderSplit)
    assert torch.equal(shards.test.images, disk.test.images)
    assert shards.test.labels.tolist() == disk.test.labels.tolist()


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has the splits train; it needs train, and val or valid"):
        load(source("tiny-imagenet", path=saved(tmp_path / "a", train=table(1))))
    names = ["n99999999", *wnids("tiny")[1:]]
    with pytest.raises(RequestError, match="n99999999 is no class of Tiny-ImageNet"):
        load(source("tiny-imagenet", path=saved(tmp_path / "b", train=table(1, names), val=table(1))))
    with pytest.raises(RequestError, match="split val has the columns image; it needs image and label"):
        load(source("tiny-imagenet", path=saved(tmp_path / "c", train=table(1), val=table(1).select_columns("image"))))
    with pytest.raises(RequestError, match="split val has no pictures of 100 of the 200 classes"):
        load(source("tiny-imagenet", path=saved(tmp_path / "d", train=table(1), val=table(1).select(range(100)))))


def test_a_damaged_picture_in_a_table_is_named_by_its_row(tmp_path: Path) -> None:
    import datasets

    train = table(1).cast_column("image", datasets.Image(decode=False))
    cut = [{"bytes": c["bytes"][:100] if i == 7 else c["bytes"], "path": None} for i, c in enumerate(train["image"])]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": train.features["label"]})
    train = datasets.Dataset.from_dict({"image": cut, "label": train["label"][:]}, features=features)
    with pytest.raises(RunFailed, match=r"cannot read the image in row 7 of .*, split train"):
        load(source("tiny-imagenet", path=saved(tmp_path / "t", train=train, val=table(1))))


def test_a_table_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(RunFailed, match="cannot load .* with Hugging Face datasets"):
        load(source("tiny-imagenet", path=str(tmp_path)))
