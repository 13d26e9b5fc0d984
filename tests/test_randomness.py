"""Keyed randomness: pure functions of a key, the same in any order and layout, and fair."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.randomness import Key, _mix, _mix_tensor, _signed

SEEDS = st.integers(0, 2**64 - 1)
PARTS = st.one_of(st.integers(0, 2**40), st.text(max_size=8))


@given(st.lists(SEEDS, min_size=1, max_size=20))
def test_the_tensor_form_mixes_as_the_integer_form(values: list[int]) -> None:
    tensor = torch.tensor([_signed(v) for v in values])
    assert _mix_tensor(tensor).tolist() == [_signed(_mix(v)) for v in values]


@given(SEEDS, st.lists(PARTS, max_size=4), st.lists(PARTS, max_size=4))
def test_folding_at_once_is_folding_one_after_another(
    seed: int, first: list[int | str], second: list[int | str]
) -> None:
    assert Key.of(seed, *first, *second) == Key.of(seed).fold(*first).fold(*second)
    assert 0 <= Key.of(seed, *first).value < 2**64


def test_order_type_and_value_of_parts_all_count() -> None:
    key = Key.of(0)
    variants = [
        key,
        Key.of(1),
        key.fold("a"),
        key.fold("b"),
        key.fold("a", "b"),
        key.fold("b", "a"),
        key.fold("ab"),
        key.fold(1),
        key.fold("1"),
        key.fold(0),
        key.fold(0, 0),
        key.fold(-1),
    ]
    assert len({k.value for k in variants}) == len(variants)


@given(SEEDS, SEEDS)
def test_a_part_equal_to_the_seed_does_not_cancel_it(left: int, right: int) -> None:
    if left != right:
        assert Key.of(left).fold(left) != Key.of(right).fold(right)
    assert Key.of(left).fold(left) != Key.of(left)


def test_keys_do_not_collide_over_many_steps() -> None:
    key = Key.of(0, "stage")
    values = {key.fold("step", step).fold("leaf", leaf).value for step in range(500) for leaf in range(20)}
    assert len(values) == 10_000


@settings(max_examples=30)
@given(SEEDS, st.lists(st.integers(0, 2**31), min_size=1, max_size=20), st.randoms())
def test_a_samples_draw_does_not_depend_on_its_neighbours(seed: int, ids: list[int], shuffler: object) -> None:
    key, tensor = Key.of(seed), torch.tensor(ids)
    together = key.uniform(tensor, 3)
    for row, sample in enumerate(ids):
        assert torch.equal(key.uniform(torch.tensor([sample]), 3)[0], together[row])
    order = torch.randperm(len(ids), generator=key.generator())
    assert torch.equal(key.uniform(tensor[order], 3), together[order])
    assert torch.equal(key.normal(tensor[order], 3), key.normal(tensor, 3)[order])
    assert torch.equal(key.uniform(tensor, 2), together[:, :2])


def test_uniform_numbers_are_uniform() -> None:
    drawn = Key.of(3, "uniform").uniform(torch.arange(100_000), 2)
    assert drawn.dtype == torch.float32
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn[:, 0], 50, 0, 1)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 94  # 49 degrees of freedom: exceeded once in 10,000 seeds
    correlation = torch.corrcoef(drawn.T.double())[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("what", ["neighbouring samples", "neighbouring keys"])
def test_neighbours_are_uncorrelated(what: str) -> None:
    ids = torch.arange(100_000)
    key = Key.of(7)
    left = key.fold("epoch", 1).uniform(ids)[:, 0]
    if what == "neighbouring samples":
        right = key.fold("epoch", 1).uniform(ids + 1)[:, 0]
    else:
        right = key.fold("epoch", 2).uniform(ids)[:, 0]
    correlation = torch.corrcoef(torch.stack([left, right]).double())[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(len(ids))


def test_normal_numbers_are_normal() -> None:
    drawn = Key.of(5).normal(torch.arange(50_000), 2).double().flatten()
    assert torch.isfinite(drawn).all()
    assert abs(float(drawn.mean())) < 4 / math.sqrt(len(drawn))
    assert float(drawn.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / len(drawn)))
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.006)


def test_a_permutation_holds_every_number_and_depends_on_the_key() -> None:
    first = Key.of(0).fold("order", 0).permutation(1000)
    assert first.sort().values.tolist() == list(range(1000))
    assert torch.equal(first, Key.of(0).fold("order", 0).permutation(1000))
    assert not torch.equal(first, Key.of(0).fold("order", 1).permutation(1000))
    assert Key.of(0).permutation(0).tolist() == []
    fixed = (first == torch.arange(1000)).sum()
    assert int(fixed) < 10


def test_every_order_of_three_is_as_likely() -> None:
    key = Key.of(11)
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(3000):
        order = tuple(key.fold(epoch).permutation(3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 500) < 4 * math.sqrt(500) for count in counts.values())


def test_single_numbers_fill_the_unit_interval() -> None:
    numbers = [Key.of(0).fold(i).number() for i in range(2000)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert sum(numbers) / 2000 == pytest.approx(0.5, abs=0.03)


def test_a_fork_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with Key.of(1).forked():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with Key.of(1).forked():
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.rand(3, generator=Key.of(1).generator()), inside)


def test_a_fork_ends_where_its_body_fails() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError), Key.of(1).forked():
        raise RuntimeError
    assert torch.equal(torch.rand(2), expected)


def test_numbers_are_the_same_in_every_process() -> None:
    """Pinned: a change of the mixing would silently change every published run."""
    assert Key.of(0).value == 12035550249420947055
    code = "from modnet.randomness import Key; print(Key.of(7, 'a', 3).value)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == Key.of(7, "a", 3).value
