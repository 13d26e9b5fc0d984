from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Port
from modnet.data import Dataset, Split
from modnet.data.episodes import draw, query_split
from modnet.errors import RequestError
from modnet.randomness import Key


def dataset(train: int, test: int, classes: int) -> Dataset:
    """So many images of each class; an image shows its class, its part and its number."""

    def split(each: int, part: int) -> Split:
        labels = torch.arange(each * classes) % classes
        images = torch.stack([labels, torch.full_like(labels, part), torch.arange(len(labels))], 1)
        return Split.of(images.to(torch.uint8).view(-1, 3, 1, 1), labels)

    parts, port = (split(train, 0), split(1, 2), split(test, 1)), Port.of("image", channels=3, size=1)
    return Dataset("toy", *parts, tuple(map(str, range(classes))), port, (0.0,) * 3, (1.0,) * 3, "")


@given(st.integers(2, 5), st.integers(1, 3), st.booleans(), st.integers(0, 99), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_every_episode_has_its_images(ways: int, shots: int, overlap: bool, seed: int, more: int) -> None:
    data = dataset(3 * shots + more, 3 * shots + more, 5)
    episodes = draw(data, ways, shots, 3, Key.of(seed), overlap)
    assert len(episodes) == 3
    for episode in episodes:
        queried = query_split(data, overlap)
        support, query = data.train.take(episode.support.flatten()), queried.take(episode.query.flatten())
        assert episode.classes.tolist() == sorted(set(episode.classes.tolist()))
        assert episode.support.shape == (ways, shots)
        assert episode.query.shape == (ways, 3 * shots)
        assert torch.equal(support.labels, episode.classes.repeat_interleave(shots))
        assert torch.equal(query.labels, episode.classes.repeat_interleave(3 * shots))
        assert len(query.images.unique(dim=0)) == len(query), "no image twice"
        both = torch.cat([support.images, query.images]).unique(dim=0)
        assert len(both) == len(query) + (0 if overlap else len(support)), "disjoint, but for the reference's quirk"
        if overlap:
            assert torch.equal(episode.query[:, :shots], episode.support)


def test_an_episode_depends_on_the_key_and_its_number_alone() -> None:
    data = dataset(9, 12, 6)
    few, many = draw(data, 3, 2, 2, Key.of(1)), draw(data, 3, 2, 9, Key.of(1))
    assert all(torch.equal(a.query, b.query) for a, b in zip(few, many, strict=False))
    assert len({tuple(e.support.flatten().tolist()) for e in many}) == 9
    other = draw(data, 3, 2, 9, Key.of(2))
    assert [e.support.tolist() for e in other] != [e.support.tolist() for e in many]
    assert {c for e in many for c in e.classes.tolist()} == set(range(6))


def test_too_few_images_or_classes_are_named() -> None:
    data = dataset(4, 6, 3)
    with pytest.raises(RequestError, match="4 ways, but 'toy' has 3 classes"):
        draw(data, 4, 1, 2, Key.of(0))
    with pytest.raises(RequestError, match="needs 9 test images of a class, but 'toy' has only 6 of '0'"):
        draw(data, 3, 3, 2, Key.of(0))
    with pytest.raises(RequestError, match="needs 6 training images of a class, but 'toy' has only 4"):
        draw(data, 3, 2, 2, Key.of(0), overlap=True)
    lacking = dataclasses.replace(data, train=data.train.take(data.train.labels != 2))
    with pytest.raises(RequestError, match="needs 1 training images of a class, but 'toy' has only 0 of '2'"):
        draw(lacking, 2, 1, 2, Key.of(0))


def test_a_class_without_pictures_is_never_drawn() -> None:
    whole = dataset(20, 20, 6)
    train, test = (split.take((split.labels % 3 != 2).nonzero()[:, 0]) for split in (whole.train, whole.test))
    some = dataclasses.replace(whole, train=train, test=test)
    drawn = {c for episode in draw(some, 2, 5, 30, Key.of(0)) for c in episode.classes.tolist()}
    assert drawn == {0, 1, 3, 4}
    with pytest.raises(RequestError, match="5 ways, but .* has 4 classes"):
        draw(some, 5, 5, 1, Key.of(0))
    with pytest.raises(RequestError, match="only 0 of"):
        draw(dataclasses.replace(whole, train=train), 2, 5, 1, Key.of(0))
