"""The suites are fixed: these hashes change only together with ``SHIFT_VERSION``."""

from __future__ import annotations

import hashlib
import itertools
import os

import pytest
import torch
from torch import Tensor

from modnet.data import load_suite
from modnet.data.large import FolderSplit
from modnet.data.shift_table import CORRUPTIONS as CONSTANTS
from modnet.data.shift_table import SHIFT_VERSION
from modnet.data.shifts import _KEPT_BYTES, Change, Parts, changed, corruptions, renditions
from modnet.data.splits import Split
from modnet.randomness import Key
from modnet.recipe.sources import Shift, Source

RENDITIONS = renditions(Shift(name="r"))
CORRUPTIONS = corruptions(Shift(name="c"))
EVERY: dict[str, Change] = {**RENDITIONS, **CORRUPTIONS}


def picture(count: int = 6, channels: int = 1, size: int = 28) -> Split:
    """Filled ellipses of several sizes and tones on black, with noise on every other one; integers only."""
    ids = torch.arange(count)
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    draw = Key.of(1).bits(ids, 4) & 255
    images = []
    for i in range(count):
        radius = size // 3 + int(draw[i, 0]) % (size // 8 + 1)
        shape = 2 * (2 * rows - size) ** 2 + 3 * (2 * columns - size) ** 2 < 8 * radius**2
        tone = 120 + int(draw[i, 1]) % 136 - (rows + columns) * 100 // (2 * size)
        grain = (Key.of(2, i).bits(torch.arange(size), size) & 31) * (i % 2)
        images.append(torch.stack([shape * (tone - 20 * c) + grain for c in range(channels)]))
    return Split.of(torch.stack(images).clamp(0, 255).to(torch.uint8), ids % 3)


def sha(parts: dict[str, Change]) -> str:
    digest = hashlib.sha256()
    for channels, size in ((1, 28), (3, 32), (1, 8), (3, 45)):
        split = picture(channels=channels, size=size)
        for name, change in parts.items():
            digest.update(name.encode())
            digest.update(change(split.images, split.ids).numpy().tobytes())
    return digest.hexdigest()


PINNED = {
    1: {
        "input": "310f27bd8e0c82f1c21d88034a755bcf6bdef8c4aefe5752d60aa271493f4bdd",
        "renditions": "a2592716b870642755311cc4691ed5d12bf85d1a38d748087a527e313379eb6d",
        "corruptions": "210568bde942b5958a6860683c9907278774a02cb44108178137151daa180787",
    }
}


def test_every_changed_image_is_the_pinned_one() -> None:
    pinned = PINNED[SHIFT_VERSION]
    assert sha({"same": lambda images, ids: images}) == pinned["input"]
    assert sha(dict(RENDITIONS)) == pinned["renditions"]
    assert sha(dict(CORRUPTIONS)) == pinned["corruptions"]


def test_threads_cannot_be_seen() -> None:
    split = picture(4, 3, 64)  # large enough for torch to divide among threads
    parts = {n: c for n, c in EVERY.items() if n in RENDITIONS or n.endswith("/3")}
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append({name: change(split.images, split.ids) for name, change in parts.items()})
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(made[0][name], made[1][name]) for name in parts)


def test_the_suites_have_8_renditions_and_14_corruptions_at_5_severities() -> None:
    names = "sketch emboss poster silhouette halftone inverted stroke texture"
    assert list(RENDITIONS) == names.split()
    assert len(CORRUPTIONS) == 70
    assert {name.split("/")[0] for name in CORRUPTIONS} == set(CONSTANTS)
    assert "frost/1" not in CORRUPTIONS


@pytest.mark.parametrize("name", EVERY)
def test_a_change_keeps_shape_and_depends_on_the_image_and_its_number_alone(name: str) -> None:
    split = picture(channels=3)
    whole = EVERY[name](split.images, split.ids)
    assert whole.shape == split.images.shape
    assert whole.dtype == torch.uint8
    rows = torch.tensor([4, 1])
    assert torch.equal(EVERY[name](split.images[rows], split.ids[rows]), whole[rows])
    assert not torch.equal(whole, split.images)


@pytest.mark.parametrize("size", [8, 13, 64, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_changes_work_at_any_size(size: int, channels: int) -> None:
    split = picture(2, channels, size)
    for name, change in EVERY.items():
        if name in RENDITIONS or name.endswith("/5"):
            result = change(split.images, split.ids)
            assert result.shape == split.images.shape, name
            assert int(result.max()) > int(result.min()), name


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean().sqrt())


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_corruption_grows_with_its_severity(kind: str) -> None:
    split = picture(40)
    far = [distance(CORRUPTIONS[f"{kind}/{s}"](split.images, split.ids), split.images) for s in range(1, 6)]
    assert far[0] > 2
    assert all(after > 0.95 * before for before, after in itertools.pairwise(far))
    assert far[4] > 1.3 * far[0]


def test_renditions_differ_from_each_other_and_from_the_image() -> None:
    split = picture(20)
    made = {"original": split.images} | {n: c(split.images, split.ids) for n, c in RENDITIONS.items()}
    for name, one in made.items():
        for other, two in made.items():
            assert name == other or distance(one, two) > 15, (name, other)


def test_a_suite_keeps_labels_and_is_made_once() -> None:
    source = Source(name="digits")
    plain = load_suite("digits", source)
    assert list(plain.parts) == ["test"]
    suite = load_suite("digits-r", source, "r")
    assert list(suite.parts) == list(RENDITIONS)
    assert torch.equal(suite.parts["sketch"].labels, plain.parts["test"].labels)
    assert torch.equal(suite.parts["inverted"].images, 255 - plain.parts["test"].images)
    again = load_suite("digits-r", source, "r")
    assert again.parts["sketch"] is suite.parts["sketch"]
    # a part of the training images has the same test set
    small = load_suite("digits-r", Source(name="digits", per_class=5), "r")
    assert torch.equal(small.parts["texture"].images, suite.parts["texture"].images)


def test_chunks_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    split = picture(9)
    whole = changed(split, RENDITIONS["texture"])
    monkeypatch.setattr("modnet.data.shifts._CHUNK_PIXELS", 28 * 28 * 2)
    assert torch.equal(changed(split, RENDITIONS["texture"]).images, whole.images)
    assert not isinstance(whole, FolderSplit)


def test_all_of_a_suite_of_fashion_mnist_is_kept_where_memory_allows() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert min(70 * 10_000 * 28 * 28, physical // 8) <= _KEPT_BYTES <= 1 << 30


def test_memory_for_made_parts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modnet.data.shifts._KEPT_BYTES", 3 * 6 * 28 * 28)
    parts = Parts(picture(6), RENDITIONS)
    for name in parts:
        assert len(parts[name]) == 6
    assert len(parts._kept) == 3
