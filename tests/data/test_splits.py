from __future__ import annotations

import pytest
import torch

from modnet.data import fingerprint, load, port_of
from modnet.data.splits import Split, check_labels, held_out, moments, part
from modnet.errors import RequestError, RunFailed
from modnet.recipe.sources import Source


def test_digits_are_balanced_disjoint_and_the_same_every_time() -> None:
    data = load(Source(name="digits"))
    assert (len(data.train), len(data.val), len(data.test)) == (1297, 140, 360)
    assert data.val.labels.bincount().tolist() == [14] * 10
    assert data.test.labels.bincount().tolist() == [36] * 10
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    assert (data.port, len(data.classes)) == port_of(Source(name="digits"))
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    # the split itself is part of what results mean: it must not move between versions
    assert data.val.ids[:5].tolist() == [23, 30, 76, 93, 129]
    assert int(data.test.images.long().sum()) == 1794714


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = load(Source(name="digits"))
    x = data.normalise(data.train.images)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-3


def test_parts_of_a_source_keep_its_moments_and_its_val() -> None:
    whole = load(Source(name="digits"))
    small = load(Source(name="digits", per_class=20))
    assert (small.mean, small.std) == (whole.mean, whole.std)
    assert torch.equal(small.val.ids, whole.val.ids)
    assert small.train.labels.bincount().tolist() == [20] * 10


def test_smaller_parts_are_within_larger_ones() -> None:
    ids = {n: set(load(Source(name="digits", per_class=n)).train.ids.tolist()) for n in (10, 30)}
    assert ids[10] < ids[30]
    tenth = set(load(Source(name="digits", fraction=0.1)).train.ids.tolist())
    assert tenth < set(load(Source(name="digits", fraction=0.4)).train.ids.tolist())


def test_another_subset_seed_gives_another_part() -> None:
    labels = load(Source(name="digits")).train.labels
    names = tuple("0123456789")
    first, second = (part(labels, names, Source(name="digits", per_class=10, subset_seed=s)) for s in (0, 1))
    assert not torch.equal(first, second)


def test_too_many_per_class_is_one_clear_sentence() -> None:
    with pytest.raises(RequestError, match=r"per_class is 500, but class '0' has only 12\d"):
        load(Source(name="digits", per_class=500))


def test_fingerprint_follows_what_is_chosen_and_the_suite() -> None:
    base = fingerprint(Source(name="digits"))
    assert base == fingerprint(Source(name="digits"))
    others = [
        fingerprint(Source(name="digits", per_class=5)),
        fingerprint(Source(name="digits", fraction=0.5)),
        fingerprint(Source(name="digits", per_class=5, subset_seed=1)),
        fingerprint(Source(name="digits"), "r"),
        fingerprint(Source(name="digits"), "c"),
        fingerprint(Source(name="fashion-mnist")),
    ]
    assert len({base, *others}) == 7


def test_held_out_never_empties_a_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 3 + [2])
    kept, out = held_out(labels, 3)
    assert labels[kept].unique().tolist() == [0, 1, 2]
    assert labels[out].bincount(minlength=3).tolist() == [3, 1, 0]
    assert torch.equal(torch.cat([kept, out]).sort().values, torch.arange(104))


def test_a_label_out_of_range_names_the_sample() -> None:
    with pytest.raises(RunFailed, match="label out of range: sample 2 has label 10"):
        check_labels(torch.tensor([0, 9, 10]), 10, "somewhere")
    with pytest.raises(RunFailed, match="sample 0 has label -1"):
        check_labels(torch.tensor([-1]), 10, "somewhere")


def test_moments_are_those_of_the_pixels() -> None:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    mean, std = moments(images)
    expected = images.double().div(255).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.tensor(mean, dtype=torch.float64), expected.mean(1))
    assert torch.allclose(torch.tensor(std, dtype=torch.float64), expected.std(1, correction=0))


def test_batches_go_in_order_to_the_last_image() -> None:
    split = Split.of(torch.arange(10).view(10, 1, 1, 1).to(torch.uint8), torch.arange(10))
    pieces = list(split.batches(4))
    assert [len(labels) for _, labels in pieces] == [4, 4, 2]
    assert torch.cat([labels for _, labels in pieces]).tolist() == list(range(10))
