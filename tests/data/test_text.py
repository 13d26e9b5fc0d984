"""Texts: dealt by file, cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modnet import data
from modnet.data.loaders import TrainBatches
from modnet.data.text import File
from modnet.errors import RequestError
from modnet.randomness import Key
from modnet.recipe.text import PackageText, Text, TextFolder, TextTable
from modnet.recipe.training import Flip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        (tmp_path / f"file{i}.txt").write_text(f"This is file {i}. " * 10)
    (tmp_path / "picture.png").write_bytes(b"no text")
    return tmp_path


def source(folder: Path, **changes: Any) -> TextFolder:
    return TextFolder(name="text-folder", path=str(folder), length=16, **changes)


def texts(split: Any) -> str:
    return bytes(split.images.flatten().tolist()).decode()


def test_each_file_is_in_one_split(folder: Path) -> None:
    found = data.load(source(folder, train_bytes=None, held_bytes=None))
    parts = [texts(split) for split in (found.train, found.val, found.test)]
    for i in range(40):
        part = {"train": 0, "val": 1, "test": 2}[File(f"file{i}.txt", bytes).part]
        assert [f"file {i}. This is file {i}." in text for text in parts] == [k == part for k in range(3)]
    assert found.port["length"] == 16
    assert len(found.classes) == 256


def test_a_label_is_the_next_byte(folder: Path) -> None:
    train = data.load(source(folder)).train
    stream, following = train.images.flatten().long(), train.labels.flatten()
    assert torch.equal(stream[1:], following[:-1])
    assert train.images.shape == train.labels.shape


def test_the_splits_of_other_files_stay_when_one_comes(folder: Path) -> None:
    before = data.load(source(folder, train_bytes=None, held_bytes=None))
    (folder / "another.txt").write_text("A new one. " * 20)
    after = data.load(source(folder, train_bytes=None, held_bytes=None))
    assert data.fingerprint(source(folder)) != before.fingerprint
    kept = [len(getattr(after, part)) >= len(getattr(before, part)) for part in ("train", "val", "test")]
    assert all(kept)


def test_so_many_bytes_and_no_more(folder: Path) -> None:
    found = data.load(source(folder, train_bytes=1000, held_bytes=200))
    assert len(found.train) == 999 // 16
    assert len(found.val) == len(found.test) == 199 // 16


def test_batches_hold_ids_and_the_score_is_in_bits(folder: Path) -> None:
    found = data.load(source(folder))
    batch = next(TrainBatches(found, 4, Key.of(0)).epoch(0))
    assert batch.x.dtype == torch.int64
    assert batch.x.shape == batch.y.shape == (4, 16)
    assert len(batch) == 4
    assert found.score == "bits_per_byte"


def test_the_standard_library_is_text_without_its_tests() -> None:
    found = data.load(Text(name="stdlib-text", train_bytes=20_000, held_bytes=5_000))
    assert len(found.train) == 19_999 // 128
    assert "import" in texts(found.train)
    assert data.fingerprint(Text(name="stdlib-text", length=64)) != data.fingerprint(Text(name="stdlib-text"))


def test_a_package_is_text() -> None:
    found = data.load(PackageText(name="package-text", package="modnet", train_bytes=5_000, held_bytes=1_000))
    assert len(found.train) == 4_999 // 128


def test_a_table_is_text(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"Row {i} says this and that. " * 5 for i in range(60)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "set"))
    params = TextTable(name="text-table", path=str(tmp_path / "set"), length=16)
    assert "says this" in texts(data.load(params).train)
    with pytest.raises(RequestError, match="none called 'body'"):
        data.load(params.changed(column="body"))


def test_wrong_requests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        data.load(source(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="not installed"):
        data.load(PackageText(name="package-text", package="no_such_package"))
    with pytest.raises(RequestError, match="too little text for val"):
        data.load(source(folder, held_bytes=3))
    with pytest.raises(RequestError, match="augmentations change images"):
        TrainBatches(data.load(source(folder)), 4, Key.of(0), (Flip(),))
    with pytest.raises(RequestError, match="shifts change images"):
        data.load_suite("mine-r", source(folder), "r")
    with pytest.raises(ValidationError, match="text has no classes"):
        Text(name="stdlib-text", per_class=3)
    with pytest.raises(ValidationError, match="one of the two"):
        TextTable(name="text-table")
