"""The transforms of ImageNet: random parts in training, a margin where it is measured, repeats, drawn pictures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from modnet.data import load, load_suite, port_of
from modnet.data.large import FolderSplit, Reader, transformed
from modnet.data.loaders import TrainBatches
from modnet.data.pixels import RandomResizedCrop
from modnet.data.sources import Description
from modnet.data.splits import Dataset, Split
from modnet.data.synthetic import SHOWN, TEST, TRAIN
from modnet.data.wordnet import wnids
from modnet.randomness import Key
from modnet.recipe.sources import Pictures, Source
from modnet.recipe.training import Flip, ResizedCrop
from modnet.registry import DATA

WIDE = (0.08, 1.0), (3 / 4, 4 / 3)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_parts_lie_within_the_image_and_within_the_limits(height: int, width: int, seed: int) -> None:
    top, left, bottom, right = RandomResizedCrop(*WIDE).boxes(Key.of(seed), torch.arange(50), height, width).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    assert (bottom > top).all()
    assert (right > left).all()


def test_parts_have_the_areas_and_shapes_that_were_asked_for() -> None:
    top, left, bottom, right = (
        RandomResizedCrop(*WIDE).boxes(Key.of(0), torch.arange(4000), 200, 200).double().unbind(1)
    )
    share, ratio = (bottom - top) * (right - left) / 200**2, (right - left) / (bottom - top)
    assert share.min() > 0.07
    assert share.quantile(0.5) == pytest.approx(0.5, abs=0.05), "uniform, but for what does not fit"
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    torch.testing.assert_close(((left + right) / 2).mean().item(), 100.0, atol=3, rtol=0)


@pytest.mark.parametrize(("size", "expected"), [((10, 100), (10, 13)), ((100, 10), (13, 10)), ((10, 10), (10, 10))])
def test_where_no_shape_fits_the_largest_middle_part_is_taken(size: tuple[int, int], expected: tuple[int, int]) -> None:
    never = RandomResizedCrop((5.0, 5.0), (3 / 4, 4 / 3))
    top, left, bottom, right = never.boxes(Key.of(0), torch.arange(3), *size)[1].tolist()
    assert (bottom - top, right - left) == expected
    assert (top, left) == ((size[0] - expected[0]) // 2, (size[1] - expected[1]) // 2)


def test_a_whole_image_is_itself_and_a_part_is_enlarged() -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    whole = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))
    assert torch.equal(whole.apply(images, Key.of(0), torch.arange(3)), images)
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 1, 64).expand(5, 1, 64, 64).contiguous()
    half = RandomResizedCrop((0.25, 0.25), (1.0, 1.0))
    boxes = half.boxes(Key.of(1), torch.arange(5), 64, 64)
    shown = half.apply(ramp, Key.of(1), torch.arange(5)).double()
    for row, (_, left, _, right) in zip(shown, boxes.tolist(), strict=True):
        expected = (left + (torch.arange(64) + 0.5) * (right - left) / 64 - 0.5).clamp(left, right - 1)
        assert (row[0, 0] - expected).abs().max() <= 1


def test_a_part_depends_on_its_own_sample_alone() -> None:
    crop, images = RandomResizedCrop(*WIDE), torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    every = crop.apply(images, Key.of(3), torch.arange(6))
    assert torch.equal(crop.apply(images[4:], Key.of(3), torch.tensor([4, 5])), every[4:])
    assert not torch.equal(crop.apply(images, Key.of(3), torch.arange(6) + 6), every)


def picture(path: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 41), (32, 32)])
def test_what_is_measured_loses_a_margin_as_torchvision_does_it(width: int, height: int, tmp_path: Path) -> None:
    file = picture(tmp_path / "p.png", width, height)
    with Image.open(file) as opened:
        expected = v2.CenterCrop(16)(v2.Resize(18, v2.InterpolationMode.BICUBIC)(opened))
    assert torch.equal(Reader(16, 3, resize=18)(file), torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_a_part_of_a_picture_on_the_disk_is_read_from_all_of_it(tmp_path: Path) -> None:
    file = picture(tmp_path / "p.png", 60, 20)
    change = transformed([Flip(p=0.0), ResizedCrop(scale=(0.3, 0.9), ratio=(0.5, 2.0))], 16, Key.of(5))
    assert change is not None
    split = FolderSplit([file] * 40, torch.zeros(40, dtype=torch.int64), torch.arange(40), Reader(16, 3), workers=0)
    (images,) = split.read([torch.arange(40)], change)
    crop = RandomResizedCrop((0.3, 0.9), (0.5, 2.0))
    with Image.open(file) as opened:
        for row in (0, 17, 39):
            top, left, bottom, right = crop.boxes(Key.of(5), torch.tensor([row]), 20, 60)[0].tolist()
            expected = opened.resize((16, 16), Image.Resampling.BICUBIC, (left, top, right, bottom))
            assert torch.equal(images[row], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def dataset(train: Split) -> Dataset:
    described = DATA.get("digits").resolve()(DATA.read("digits"))
    assert isinstance(described, Description)
    return Dataset("x", train, train, train, described.classes, described.port, (0.5,), (0.5,), "")


@pytest.mark.parametrize(("batch", "repeats"), [(12, 3), (10, 3), (8, 2)])
def test_repeats_are_copies_in_one_batch_that_differ(batch: int, repeats: int) -> None:
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    train = Split.of(images, torch.arange(50) % 10)
    made = TrainBatches(dataset(train), batch, Key.of(0), [ResizedCrop()], repeats=repeats)
    assert made.steps_per_epoch == 50 // batch
    whole, again = list(made.epoch(1)), list(made.epoch(1, start=2))
    seen: list[int] = []
    for got in whole:
        sources, fresh = (got.ids // repeats).tolist(), -(-batch // repeats)
        assert len(set(sources)) == fresh
        assert len(set(got.ids.tolist())) == batch, "every copy draws for itself"
        assert all(a != b for a, b in itertools.pairwise(sources)), "mixup blends two images"
        assert torch.equal(got.y, train.labels[got.ids // repeats])
        seen += set(sources)
    assert len(seen) == len(set(seen))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole[2:], again, strict=True))
    first = whole[0]
    assert not torch.equal(first.x[0], first.x[-(-batch // repeats)]), "two copies of one image"


def test_one_copy_is_what_it_always_was() -> None:
    train = Split.of(torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 10)
    plain = TrainBatches(dataset(train), 6, Key.of(0), [Flip()])
    one = TrainBatches(dataset(train), 6, Key.of(0), [Flip()], repeats=1)
    for a, b in zip(plain.epoch(0), one.epoch(0), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.ids, b.ids)


def synthetic(name: str, **values: object) -> Pictures:
    params = DATA.read({"name": name, "synthetic": True, "size": 16, **values})
    assert isinstance(params, Pictures)
    return params


@pytest.mark.parametrize(("name", "classes"), [("tiny-imagenet", 200), ("imagenet", 1000), ("cub", 200)])
@pytest.mark.parametrize("resident", [True, False])
def test_drawn_pictures_have_the_shape_and_classes_of_a_set(
    name: str, classes: int, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    data = load(synthetic(name, resident=resident, resize=18))
    assert (len(data.classes), data.port) == (classes, port_of(synthetic(name))[0])
    assert (len(data.train), len(data.val), len(data.test)) == (SHOWN * (TRAIN - 1), SHOWN, SHOWN * TEST)
    assert len(data.train.labels.unique()) == SHOWN
    images: Tensor = data.train.images.double()
    by_class = images[data.train.labels == data.train.labels[0]]
    assert 0 < (by_class[0] - by_class[1]).abs().mean() < (images[0] - images[-1]).abs().mean()
    wide = load(synthetic(name, resident=resident))
    assert torch.equal(wide.train.images, data.train.images), "the margin is of what is measured"
    assert not torch.equal(wide.val.images, data.val.images)
    assert not torch.equal(wide.test.images, data.test.images)


@pytest.mark.parametrize(("name", "group", "shown"), [("tiny-imagenet", "tiny", 62), ("imagenet", "imagenet", 200)])
def test_drawn_renditions_are_of_the_suites_classes(name: str, group: str, shown: int) -> None:
    suite = load_suite("x", synthetic(name, resident=True), "r")
    assert suite.mask is not None
    assert int(suite.mask.sum()) == shown
    labels = suite.parts["test"].labels
    assert suite.mask[labels].all()
    assert {suite.dataset.classes[y] for y in labels} <= set(wnids("r")) & set(wnids(group))


def test_a_margin_is_at_least_the_image() -> None:
    with pytest.raises(ValueError, match="resize 32 must be at least size 64"):
        DATA.read({"name": "tiny-imagenet", "resize": 32})
    assert isinstance(DATA.read("tiny-imagenet"), Source)
