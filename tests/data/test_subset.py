from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modnet.data import fingerprint, load, load_suite, port_of
from modnet.errors import RequestError
from modnet.recipe.sources import Source
from modnet.registry import DATA
from tests.data import published as made


def subset(*classes: object, of: object = "digits", **values: object) -> Source:
    found = DATA.read({"name": "class-subset", "of": of, "classes": list(classes), **values})
    assert isinstance(found, Source)
    return found


def test_some_classes_are_a_source_of_their_own() -> None:
    whole, part = load(Source(name="digits")), load(subset("7", 2, 4, per_class=20))
    assert part.classes == ("2", "4", "7")
    assert port_of(subset(7, 2)) == (whole.port, 2)
    assert part.train.labels.bincount().tolist() == [20, 20, 20]
    rows = torch.isin(whole.test.labels, torch.tensor([2, 4, 7]))
    assert torch.equal(part.test.images, whole.test.images[rows])
    assert torch.equal(part.test.ids, whole.test.ids[rows])
    assert torch.tensor([2, 4, 7])[part.test.labels].tolist() == whole.test.labels[rows].tolist()
    assert len(load_suite("x", subset(7, 2), "r", 10).parts["inverted"]) == 10


def test_its_fingerprint_follows_the_classes_and_not_how_they_are_written() -> None:
    assert fingerprint(subset(2, "7")) == fingerprint(subset("7", "2"))
    assert fingerprint(subset(2, 7)) != fingerprint(subset(2, 6))


def test_images_on_disk_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    made.put(tmp_path, {f"{c}/{i}.jpg": made.jpeg(50 * n) for n, c in enumerate("abcd") for i in range(20)})
    of = {"name": "image-folder", "path": str(tmp_path), "size": 8, "resident": False}
    part = load(subset("d", "b", of=of))
    assert part.classes == ("b", "d")
    shades = part.test.images.float().mean((1, 2, 3))
    assert (shades - torch.tensor([50.0, 150.0])[part.test.labels]).abs().max() < 3


def test_wrong_classes_are_named() -> None:
    with pytest.raises(RequestError, match=r"digits has no class number 10; they are 0 to 9\."):
        load(subset(1, 10))
    with pytest.raises(RequestError, match=r"fashion-mnist has no class 'Trousers'; did you mean 'Trouser'\?"):
        port_of(subset("Trousers", "Coat", of="fashion-mnist"))
    with pytest.raises(RequestError, match="class '1' is named twice"):
        load(subset(1, "1"))
    with pytest.raises(ValueError, match="give per_class or fraction beside classes"):
        subset(1, 2, of={"name": "digits", "per_class": 3})
