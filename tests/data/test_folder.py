from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modnet.data import fingerprint, load, load_suite, port_of
from modnet.data.large import FolderSplit, Reader, default_workers, transform
from modnet.data.loaders import TrainBatches
from modnet.errors import RequestError, RunFailed
from modnet.evaluation.accuracy import Turns
from modnet.randomness import Key
from modnet.recipe.sources import Folder
from modnet.recipe.training import Crop, Erase, Flip, Mixup, RandAugment


def draw(folder: Path, classes: Sequence[str], count: int = 20) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((12 + i % 3, 16, 3), 10 * i + number, dtype=np.uint8)
            pixels[2:5, 3:9] = (200, 50 * number, i)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def folder(path: Path, **values: object) -> Folder:
    return Folder.model_validate({"name": "image-folder", "path": str(path), "size": 8, **values})


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODNET_WORKERS", "0")


def test_train_and_test_folders(tmp_path: Path) -> None:
    draw(tmp_path / "train", ["b", "a", "c"])
    draw(tmp_path / "test", ["c", "a"], 4)
    data = load(folder(tmp_path))
    assert data.classes == ("a", "b", "c")
    assert (len(data.train), len(data.val), len(data.test)) == (54, 6, 8)
    assert data.test.labels.unique().tolist() == [0, 2]
    assert data.train.images.shape[1:] == (3, 8, 8)
    assert (data.port, 3) == port_of(folder(tmp_path))


def test_one_folder_a_class_gives_a_tenth_to_test(tmp_path: Path) -> None:
    draw(tmp_path, ["x", "y"])
    data = load(folder(tmp_path, channels=1))
    assert (len(data.train), len(data.val), len(data.test)) == (34, 2, 4)
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert data.train.images.shape[1:] == (1, 8, 8)


def test_images_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    draw(tmp_path, ["x", "y"])
    small, large = (load(folder(tmp_path, resident=r)) for r in (True, False))
    assert isinstance(large.train, FolderSplit)
    assert not isinstance(small.train, FolderSplit)
    assert torch.equal(large.train.images, small.train.images)
    assert torch.equal(large.val.labels, small.val.labels)
    pairs = list(zip(large.test.batches(3), small.test.batches(3), strict=True))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    suite = load_suite("own-r", folder(tmp_path, resident=False), "r").parts["inverted"]
    assert isinstance(suite, FolderSplit)
    assert torch.equal(suite.images, 255 - small.test.images)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_epoch_from_disk_goes_on_the_same_whatever_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    draw(tmp_path, ["x", "y"])
    augment = (Crop(), Flip(), RandAugment(), Erase(p=1), Mixup())
    expected = list(TrainBatches(load(folder(tmp_path, resident=False)), 8, Key.of(1), augment).epoch(1))
    monkeypatch.setenv("MODNET_WORKERS", workers)
    state = torch.random.get_rng_state()
    data = load(folder(tmp_path, resident=False, subset_seed=int(workers)))
    assert isinstance(data.train, FolderSplit)
    assert data.train.workers == int(workers)
    batches = TrainBatches(data, 8, Key.of(1), augment)
    found = list(batches.epoch(1, 2))
    assert batches.steps_per_epoch == 4
    assert len(found) == 2
    for one, other in zip(expected[2:], found, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.ids, other.ids)
    assert torch.equal(state, torch.random.get_rng_state())
    plain = next(iter(TrainBatches(data, 8, Key.of(1)).epoch(1)))
    assert not torch.equal(expected[0].x, plain.x)


def test_only_pixel_augmentations_become_transforms() -> None:
    assert transform((Mixup(),), 8) is None
    assert transform((Crop(), Mixup()), 8) is not None


def test_ranks_read_their_own_batches_alone(tmp_path: Path) -> None:
    draw(tmp_path, ["x", "y"])
    split = load(folder(tmp_path, resident=False)).train
    assert isinstance(split, FolderSplit)
    whole = list(split.batches(7))
    own = [list(Turns(split, first, 2).batches(7)) for first in (0, 1)]
    assert [len(share) for share in own] == [len(whole[0::2]), len(whole[1::2])]
    for turn, (images, labels) in enumerate(whole):
        assert torch.equal(own[turn % 2][turn // 2][0], images)
        assert torch.equal(own[turn % 2][turn // 2][1], labels)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool, workers: str
) -> None:
    monkeypatch.setenv("MODNET_WORKERS", workers)
    draw(tmp_path, ["x", "y"])
    bad = tmp_path / "y" / "007.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(RunFailed, match=r"^cannot read the image .*y/007\.png: .* Mend or remove"):
        read_all(folder(tmp_path, resident=resident))


def read_all(params: Folder) -> None:
    data = load(params)
    for split in (data.train, data.val, data.test):
        list(split.batches(5))


def test_reading_keeps_the_middle_square_and_turns_as_the_camera_says(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    middle = Reader(10, 3)(tmp_path / "wide.png")
    assert middle[0].min() == 255
    assert not middle[1:].any()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:4] = 255
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    assert Reader(8, 1)(tmp_path / "turned.png")[0, 4:].min() == 255


def test_wrong_folders_are_one_clear_sentence(tmp_path: Path) -> None:
    def complaint(**values: object) -> str:
        with pytest.raises(RequestError) as caught:
            load(folder(tmp_path / "own", **values))
        return str(caught.value)

    assert "there is no folder" in complaint()
    (tmp_path / "own").mkdir()
    assert "has no folders" in complaint()
    draw(tmp_path / "own", ["x"])
    assert "only one class" in complaint()
    draw(tmp_path / "own", ["y"])
    (tmp_path / "own" / "empty").mkdir()
    assert "own/empty has no images" in complaint()
    assert "channels is 2" in complaint(channels=2)
    draw(tmp_path / "own" / "train", ["x", "y"])
    assert "none called test" in complaint()
    draw(tmp_path / "own" / "test", ["x", "z"])
    assert "has the class 'z'" in complaint()


def test_fingerprint_follows_contents_and_not_places(tmp_path: Path) -> None:
    draw(tmp_path / "one", ["x", "y"])
    draw(tmp_path / "two", ["x", "y"])
    first = fingerprint(folder(tmp_path / "one"))
    assert fingerprint(folder(tmp_path / "two")) == first
    assert fingerprint(folder(tmp_path / "one", size=9)) != first
    Image.new("RGB", (9, 9)).save(tmp_path / "two" / "x" / "000.png")
    assert fingerprint(folder(tmp_path / "two")) != first


@pytest.mark.parametrize("given", ["abc", "-1", "1.5"])
def test_workers_that_are_no_number_are_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODNET_WORKERS", given)
    with pytest.raises(RequestError, match=f"MODNET_WORKERS is '{given}'"):
        default_workers()
    monkeypatch.setenv("MODNET_WORKERS", "3")
    assert default_workers() == 3
