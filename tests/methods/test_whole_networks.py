"""Assembly, Hinton distillation and going on from an earlier stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modnet.errors import RequestError
from modnet.surgery import assemble, fold_stitches


def test_assembly_before_fine_tuning_is_the_modules(taught: Any) -> None:
    inputs = taught.run(only="teacher")
    modules = [taught.chain(inputs, "modules", f"module{i}") for i in range(3)]
    before = taught.chain(inputs, "teacher", "before")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(before.eval()(x), assemble(modules).eval()(x))
    assert before.depths == (2, 1, 2)


def test_dropped_stitches_leave_the_distilled_tensors(taught: Any) -> None:
    inputs = taught.run(only="student")
    before = taught.chain(inputs, "student", "before")
    taught_leaves = [
        leaf
        for i in range(3)
        for leaf in taught.chain(inputs, "transfer", f"module{i}").leaves
        if leaf.role != "stitch"
    ]
    for leaf, source in zip(before.leaves, taught_leaves, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(leaf.state_dict().values(), source.state_dict().values(), strict=True)
        )


def test_feature_modules_are_folded_by_default(taught: Any) -> None:
    inputs = taught.run(only="folded")
    before = taught.chain(inputs, "folded", "before").eval()
    modules = [taught.chain(inputs, "mimic", f"module{i}") for i in range(3)]
    assert [leaf.role for leaf in before.leaves].count("stitch") == 2
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(before(x), fold_stitches(assemble(modules)).eval()(x))


def test_stitches_can_be_kept_and_refuse_to_fold_over_a_norm(taught: Any) -> None:
    inputs = taught.run("stages.student.stitches=keep", only="student")
    assert [leaf.role for leaf in taught.chain(inputs, "student").leaves].count("stitch") == 4


def test_fine_tuning_without_epochs_gives_the_assembled_network(taught: Any) -> None:
    inputs = taught.run("stages.student.epochs=0", only="student")
    x = torch.randn(3, 1, 8, 8)
    before, after = taught.chain(inputs, "student", "before"), taught.chain(inputs, "student")
    assert torch.equal(before.eval()(x), after.eval()(x))


def test_hinton_trains_a_student_and_leaves_the_teacher(taught: Any) -> None:
    inputs = taught.run(only="hinton")
    assert taught.chain(inputs, "hinton").depths == (1, 2, 1)


def test_going_on_from_a_stage_keeps_its_optimizer_state(taught: Any) -> None:
    schedule = "schedule={name: constant, warmup: 0}"
    more = "stages.more={run: train, from: base, epochs: 1, seed: 0, schedule: {name: constant, warmup: 0}}"
    inputs = taught.run(f"stages.base.{schedule}", "stages.base.select=last", more, only="more")
    first, second = taught.chain(inputs, "base"), taught.chain(inputs, "more")
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_networks_cut_otherwise_are_refused(taught: Any) -> None:
    with pytest.raises(RequestError, match="modules"):
        taught.run("models.small.depths=[1, 1]", only="transfer")
