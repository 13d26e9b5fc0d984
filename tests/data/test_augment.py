from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.data import augment
from modnet.data.mixing import share
from modnet.data.pixels import RandomCrop, RandomErase, flipped, shifted
from modnet.data.randaugment import MOVES, TONES, filtered, moved, tone_table, toned
from modnet.randomness import Key
from modnet.recipe import training
from modnet.registry import AUGMENTS

IDS = torch.arange(400) * 7
KEY = Key.of(11)


def images(count: int = 400, channels: int = 1, height: int = 9, width: int = 11) -> Tensor:
    values = Key.of(5).bits(torch.arange(count), channels * height * width) & 255
    return values.to(torch.uint8).view(count, channels, height, width)


def test_every_registered_augmentation_builds() -> None:
    for name in AUGMENTS.names():
        entry = AUGMENTS.get(name)
        assert isinstance(entry.resolve()(entry.params()), augment.Pixels | augment.Mixing)


@given(pad=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_crop_shifts_and_fills_with_black(pad: int) -> None:
    some = images(20, 3)
    assert torch.equal(shifted(some, torch.full((20, 2), pad), pad), some)
    moved_up = shifted(some, torch.tensor([[pad + 1, pad]]).expand(20, 2), pad)
    assert torch.equal(moved_up[:, :, :-1], some[:, :, 1:])
    assert not moved_up[:, :, -1].any()


def test_crop_draws_each_shift_equally_often() -> None:
    draws = RandomCrop(2).shifts(KEY, torch.arange(25_000))
    counts = (5 * draws[:, 0] + draws[:, 1]).bincount(minlength=25)
    assert len(counts) == 25
    assert counts.min() > 850  # 1,000 expected, deviation 31
    assert counts.max() < 1_150


def test_flip_twice_is_the_identity_and_half_are_flipped() -> None:
    some, which = images(), torch.arange(400) % 3 == 0
    once = flipped(some, which)
    assert torch.equal(flipped(once, which), some)
    assert torch.equal(once[0], some[0].flip(-1))
    assert torch.equal(once[1], some[1])
    op = augment.flip(training.Flip())
    changed = (op.apply(some, KEY, IDS) != some).flatten(1).any(1).float().mean()
    assert 0.42 < float(changed) < 0.58
    assert torch.equal(augment.flip(training.Flip(p=0)).apply(some, KEY, IDS), some)


@given(low=st.floats(0.02, 0.3), spread=st.floats(0, 0.5), height=st.integers(8, 40))
@settings(max_examples=30, deadline=None)
def test_erased_area_lies_within_its_bounds(low: float, spread: float, height: int) -> None:
    width = 28
    box = RandomErase(1.0, (low, low + spread)).boxes(KEY, torch.arange(200), height, width)
    top, left, bottom, right = box.unbind(1)
    assert ((top >= 0) & (left >= 0) & (bottom <= height) & (right <= width)).all()
    area = (bottom - top) * (right - left)
    assert (area >= 1).all()
    assert (area <= (low + spread) * height * width + 1).all()
    assert (area >= low * height * width - height).all()  # less than a column is lost to rounding


def test_erase_changes_only_its_rectangle() -> None:
    some = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    erased = augment.erase(training.Erase(p=1.0)).apply(some, KEY, IDS)
    share_of = (erased != 0).float().mean((1, 2, 3))
    assert float(share_of.max()) <= 0.34
    assert float(share_of.min()) > 0.0
    half = augment.erase(training.Erase(p=0.5)).apply(some, KEY, IDS)
    touched = (half != 0).flatten(1).any(1)
    assert 150 < int(touched.sum()) < 250


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_the_share_that_is_kept_is_beta_distributed(alpha: float) -> None:
    keep = share(KEY, torch.arange(20_000), alpha).double()
    assert float(keep.min()) >= 0
    assert float(keep.max()) <= 1
    assert abs(float(keep.mean()) - 0.5) < 0.01
    assert float(keep.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup-cutmix"])
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_mixed_targets_sum_to_1_and_follow_the_pixels(name: str, count: int, seed: int) -> None:
    entry = AUGMENTS.get(name)
    labels = torch.arange(count) % 4
    target = torch.nn.functional.one_hot(labels, 4).float()
    x = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 10, 10)  # each image is filled with its label
    mixed, mixed_target = entry.resolve()(entry.params()).apply(x, target, Key.of(seed), IDS[:count])
    assert torch.allclose(mixed_target.sum(1), torch.ones(count))
    assert (mixed_target >= 0).all()
    # so the mean pixel is the mean label under the target
    assert torch.allclose(mixed.mean((1, 2, 3)), mixed_target @ torch.arange(4.0), atol=1e-5)


def test_mixing_with_probability_0_changes_nothing() -> None:
    x, target = torch.randn(6, 1, 8, 8), torch.eye(6)
    op = augment.mixup_cutmix(training.MixupOrCutMix(p=0))
    mixed, mixed_target = op.apply(x, target, KEY, IDS[:6])
    assert torch.equal(mixed, x)
    assert torch.equal(mixed_target, target)


@pytest.mark.parametrize("name", ["brightness", "contrast", "posterize", "solarize"])
def test_tones_of_magnitude_0_are_the_identity(name: str) -> None:
    some = images(3)
    which = torch.full((3,), TONES.index(name))
    assert torch.equal(toned(some, which, torch.zeros(3, dtype=torch.float64)), some)


def test_tones_do_what_they_are_called() -> None:
    some, level = images(2), torch.ones(2, dtype=torch.float64)

    def through(name: str) -> Tensor:
        return toned(some, torch.full((2,), TONES.index(name)), level)

    assert torch.equal(through("invert"), 255 - some)
    assert torch.equal(through("posterize"), some & 0xF0)
    assert torch.equal(through("solarize"), 255 - some)
    stretched = toned(some // 2 + 20, torch.full((2,), TONES.index("autocontrast")), level)
    assert (int(stretched.min()), int(stretched.max())) == (0, 255)
    equal = tone_table("equalize", some, level)
    assert (equal.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("name", MOVES)
def test_moves_of_magnitude_0_are_the_identity_and_others_are_not(name: str) -> None:
    some, which = images(4, 3), torch.full((4,), MOVES.index(name))
    assert torch.equal(moved(some, which, torch.zeros(4, dtype=torch.float64)), some)
    assert not torch.equal(moved(some, which, torch.full((4,), 0.9, dtype=torch.float64)), some)


def test_translation_moves_by_whole_pixels_exactly() -> None:
    some = images(1, 1, 10, 10)
    level = torch.tensor([3 / 10 / (100 / 331)], dtype=torch.float64)
    shifted_left = moved(some, torch.tensor([MOVES.index("translate_x")]), level)
    assert torch.equal(shifted_left[..., :-3], some[..., 3:])


def test_filters_of_magnitude_0_are_the_identity_and_least_saturation_is_greyer() -> None:
    some, which = images(4, 3), torch.tensor([0, 1, 0, 1])
    assert torch.equal(filtered(some, which, torch.zeros(4, dtype=torch.float64)), some)
    grey = filtered(some, torch.ones(4).long(), torch.full((4,), -1.0, dtype=torch.float64))
    assert float(grey.float().std(1).mean()) < 0.2 * float(some.float().std(1).mean())


def test_randaugment_changes_most_images_and_draws_every_operation() -> None:
    op = augment.randaugment(training.RandAugment(ops=1))
    some = images(400, 3)
    which, level = op.draw(KEY.fold(0), IDS, 15)  # type: ignore[attr-defined]
    assert which.unique().tolist() == list(range(15))
    assert abs(float(level.abs().mean()) - 0.9) < 0.02
    changed = (op.apply(some, KEY, IDS) != some).flatten(1).any(1).float().mean()
    assert 0.75 < float(changed) < 1 - 1 / 15 / 2
    assert math.isclose(float((level > 0).float().mean()), 0.5, abs_tol=0.1)
