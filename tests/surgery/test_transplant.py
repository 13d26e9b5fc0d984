"""What transplanting loads, leaves and drops, and how a family brings its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.models.vit import vit
from modnet.surgery import Family, Report, assemble, family_of, fold_stitches, stitched, transplant, without_stitches

Tiny = Callable[..., Chain]


def students(tiny: Tiny, kind: str = "ln-linear", seed: int = 1) -> list[Chain]:
    host = tiny(depths=(1, 2, 1), width=12)
    return [stitched(module, host, i, kind) for i, module in enumerate(tiny(depths=(1, 2, 1), seed=seed, width=8))]


def copied(network: Chain) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(left: Chain, right: Chain) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_stitches_are_dropped_where_the_network_has_none(tiny: Tiny) -> None:
    taught, network = students(tiny), tiny(depths=(1, 2, 1), seed=5, width=8)
    report = transplant(taught, network)
    assert equal(network, without_stitches(Chain([leaf for student in taught for leaf in student.leaves])))
    assert report.loaded == list(network.state_dict())
    assert len(report.dropped) == 4 * 4
    assert report.left == []


def test_the_same_stitches_are_loaded_and_nothing_is_dropped(tiny: Tiny) -> None:
    taught, network = students(tiny), assemble(students(tiny, seed=5))
    report = transplant(taught, network)
    assert equal(network, assemble(taught))
    assert (report.left, report.dropped) == ([], [])
    assert report.loaded == list(network.state_dict())


def test_stitches_that_no_student_brought_are_left_as_they_were(tiny: Tiny) -> None:
    taught, network = students(tiny, "linear"), fold_stitches(assemble(students(tiny, "linear", seed=5)))
    before = copied(network)
    report = transplant(taught, network)
    assert len(report.left) == 2 * 2
    assert all(".fc." in name and torch.equal(network.state_dict()[name], before[name]) for name in report.left)
    assert sorted(report.loaded + report.left) == sorted(network.state_dict())
    assert len(report.dropped) == 4 * 2
    plain = transplant(list(tiny(depths=(1, 2, 1), width=8)), network)
    assert (len(plain.left), plain.dropped) == (4, [])


def test_another_shape_or_another_number_of_leaves_changes_nothing(tiny: Tiny) -> None:
    network = tiny(depths=(1, 2, 1), seed=5, width=16)
    before = copied(network)
    with pytest.raises(RequestError, match="cannot be loaded"):
        transplant(students(tiny), network)
    with pytest.raises(RequestError, match="do not fill"):
        transplant(students(tiny), tiny(depths=(1, 1, 1), seed=5, width=8))
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def counting(students: Sequence[Chain], network: Chain) -> Report:
    return Report(left=[str(len(students))])


FAMILY = Family(transplant=counting)


def builder(*arguments: Any) -> Chain:
    return Chain()


def test_a_family_brings_its_own_transplant_and_the_default_is_identity(tiny: Tiny) -> None:
    plain, network = family_of(vit), tiny()
    assert plain.transplant is transplant
    assert plain.student(network, 1, 99).leaves == network[1].leaves
    own = globals()["builder"]
    assert family_of(own).transplant([], network).left == ["0"]
