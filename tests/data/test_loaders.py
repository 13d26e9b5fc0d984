from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Port
from modnet.data.loaders import TrainBatches
from modnet.data.splits import Dataset, Split
from modnet.engine.batch import Batches
from modnet.randomness import Key
from modnet.recipe.training import Crop, CutMix, Erase, Flip, Mixup, MixupOrCutMix, RandAugment
from modnet.registry import Params

PIXELS: tuple[Params, ...] = (Crop(), Flip(), RandAugment(), Erase(p=0.5))
MIXING: tuple[Params, ...] = (Mixup(), CutMix(), MixupOrCutMix())


def dataset(count: int = 50, channels: int = 1, size: int = 12) -> Dataset:
    key, ids = Key.of(7), torch.arange(count)
    images = (key.bits(ids, channels * size * size) & 255).to(torch.uint8)
    split = Split(images.view(count, channels, size, size), ids % 5, ids * 3 + 1)
    moments = ((0.5,) * channels, (0.25,) * channels)
    port = Port.of("image", channels=channels, size=size)
    return Dataset("made", split, split, split, tuple("abcde"), port, *moments, "fingerprint")


def test_an_epoch_visits_every_sample_once_and_another_in_another_order() -> None:
    batches: Batches = TrainBatches(dataset(), 10, Key.of(0))
    first, second = (torch.cat([b.ids for b in batches.epoch(e)]) for e in (0, 1))
    assert torch.equal(first.sort().values, dataset().train.ids)
    assert torch.equal(second.sort().values, dataset().train.ids)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat([b.ids for b in TrainBatches(dataset(), 10, Key.of(1)).epoch(0)]))


def test_the_last_partial_batch_is_dropped_and_a_small_set_is_one_batch() -> None:
    batches = TrainBatches(dataset(50), 16, Key.of(0))
    assert (batches.steps_per_epoch, batches.batch_size) == (3, 16)
    assert [len(b) for b in batches.epoch(0)] == [16, 16, 16]
    small = TrainBatches(dataset(50), 128, Key.of(0))
    assert (small.steps_per_epoch, small.batch_size, [len(b) for b in small.epoch(0)]) == (1, 50, [50])


def test_without_augmentation_a_batch_is_its_normalised_images() -> None:
    data = dataset()
    batch = next(iter(TrainBatches(data, 8, Key.of(0)).epoch(0)))
    rows = (batch.ids - 1) // 3
    assert torch.equal(batch.x, data.normalise(data.train.images[rows]))
    assert torch.equal(batch.y, data.train.labels[rows])
    assert batch.target is None


@pytest.mark.parametrize("channels", [1, 3])
@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 4), epoch=st.integers(0, 3))
def test_an_epoch_taken_up_at_any_step_goes_on_the_same(channels: int, start: int, epoch: int) -> None:
    batches = TrainBatches(dataset(channels=channels), 10, Key.of(0), PIXELS + MIXING)
    whole, rest = list(batches.epoch(epoch)), list(batches.epoch(epoch, start))
    assert len(rest) == len(whole) - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert torch.equal(one.x, other.x)
        assert one.target is not None
        assert other.target is not None
        assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("augment", PIXELS, ids=lambda p: p.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_becomes_the_same_in_batches_of_any_size(augment: Params, channels: int) -> None:
    data = dataset(channels=channels)
    seen = []
    for size in (1, 7, 50):
        batches = list(TrainBatches(data, size, Key.of(3), (augment,)).epoch(2))
        order = torch.cat([b.ids for b in batches]).argsort()
        seen.append(torch.cat([b.x for b in batches])[order])
        if size == 7:
            kept = torch.cat([b.ids for b in batches]).sort().values
    rows = (kept - 1) // 3
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[2][rows])
    assert not torch.equal(seen[2], data.normalise(data.train.images))


def test_epochs_and_repeats_of_an_augmentation_draw_anew() -> None:
    data = dataset()
    batches = TrainBatches(data, 50, Key.of(0), (Crop(),))
    first, second = (next(iter(batches.epoch(e))) for e in (0, 1))
    assert not torch.equal(first.x[first.ids.argsort()], second.x[second.ids.argsort()])
    twice = TrainBatches(data, 50, Key.of(0), (Flip(), Flip()))
    flipped = next(iter(twice.epoch(0)))
    plain = data.normalise(data.train.images)[flipped.ids // 3]
    assert not torch.equal(flipped.x, plain)  # equal draws would undo each other


def test_partners_are_neighbours_in_the_epochs_order() -> None:
    data = dataset()
    batch = next(iter(TrainBatches(data, 10, Key.of(0), (Mixup(alpha=1.0),)).epoch(0)))
    assert batch.target is not None
    assert torch.allclose(batch.target.sum(1), torch.ones(10))
    plain = next(iter(TrainBatches(data, 10, Key.of(0)).epoch(0)))
    keep = batch.target.gather(1, batch.y[:, None])[:, 0]
    differ = batch.y != batch.y.roll(-1)
    k = keep.view(-1, 1, 1, 1)
    expected = k * plain.x + (1 - k) * plain.x.roll(-1, 0)
    assert torch.allclose(batch.x[differ], expected[differ], atol=1e-6)


def test_no_training_images_is_said() -> None:
    with pytest.raises(ValueError, match="no training images"):
        TrainBatches(dataset(0), 4, Key.of(0))


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 8), count=st.integers(1, 9), epoch=st.integers(0, 2), channels=st.sampled_from([1, 3]))
def test_shared_rows_are_those_of_the_whole_batch(first: int, count: int, epoch: int, channels: int) -> None:
    batches = TrainBatches(dataset(channels=channels), 9, Key.of(0), PIXELS + MIXING)
    rows = slice(first, min(first + count, 9))
    for whole, own in zip(batches.epoch(epoch, 2), batches.shared(rows).epoch(epoch, 2), strict=True):
        assert torch.equal(own.x, whole.x[rows])
        assert torch.equal(own.ids, whole.ids[rows])
        assert own.target is not None
        assert whole.target is not None
        assert torch.equal(own.target, whole.target[rows])
