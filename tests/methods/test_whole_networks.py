"""Assembly, Hinton distillation and going on from an earlier stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.engine.reporter import Reporter
from modnet.engine.trainer import train
from modnet.errors import RequestError
from modnet.methods.supervised import Hinton, Supervised, WholeMethod
from modnet.surgery import assemble, fold_stitches


def trained(method: WholeMethod, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """The network's tensors after the method's job, with some of the job's settings changed."""
    (job,) = method.jobs()
    train(dataclasses.replace(job, **changes), folder, Reporter(folder, "again", tensorboard=False))
    return method.chain.state_dict()


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


def test_kept_stitches_leave_the_distilled_modules_in_a_row(taught: Any) -> None:
    inputs = taught.run("stages.student.stitches=keep", only="student")
    before = taught.chain(inputs, "student", "before").eval()
    assert [leaf.role for leaf in before.leaves].count("stitch") == 4
    x = torch.randn(3, 1, 8, 8)
    modules = [taught.chain(inputs, "transfer", f"module{i}") for i in range(3)]
    assert torch.equal(before(x), assemble(modules).eval()(x))


def test_stitches_with_a_norm_between_them_refuse_to_fold(taught: Any) -> None:
    with pytest.raises(RequestError, match="two do not fold"):
        taught.run("stages.student.stitches=fold", only="student")


def test_fine_tuning_without_epochs_gives_the_assembled_network(taught: Any) -> None:
    inputs = taught.run("stages.student.epochs=0", only="student")
    x = torch.randn(3, 1, 8, 8)
    before, after = taught.chain(inputs, "student", "before"), taught.chain(inputs, "student")
    assert torch.equal(before.eval()(x), after.eval()(x))


def test_hinton_trains_a_student_and_leaves_the_teacher(taught: Any, tmp_path: Path) -> None:
    inputs = taught.run(only="teacher")
    stored = taught.chain(inputs, "teacher").state_dict()
    inputs = taught.run(only="hinton")
    assert taught.chain(inputs, "hinton").depths == (1, 2, 1)
    assert all(torch.equal(t, stored[name]) for name, t in taught.chain(inputs, "teacher").state_dict().items())
    method = Hinton(inputs.recipe.stages["hinton"].changed(epochs=1), inputs)
    student = {name: t.clone() for name, t in method.chain.state_dict().items()}
    after = trained(method, tmp_path)
    assert method.teacher is not None
    assert all(torch.equal(t, stored[name]) for name, t in method.teacher.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(not torch.equal(t, student[name]) for name, t in after.items())


def test_going_on_from_a_stage_keeps_its_optimizer_state(taught: Any, tmp_path: Path) -> None:
    schedule = "schedule={name: constant, warmup: 0}"
    more = f"stages.more={{run: train, from: base, epochs: 1, seed: 0, select: last, {schedule.replace('=', ': ')}}}"
    inputs = taught.run(f"stages.base.{schedule}", "stages.base.select=last", more, only="more")
    first, second = taught.chain(inputs, "base").state_dict(), taught.chain(inputs, "more").state_dict()
    going_on, anew = (Supervised(inputs.recipe.stages["more"], inputs) for _ in range(2))
    assert all(torch.equal(t, first[name]) for name, t in anew.chain.state_dict().items())
    with_state = trained(going_on, tmp_path / "with")
    without = trained(anew, tmp_path / "without", start=None)
    assert all(torch.equal(t, second[name]) for name, t in with_state.items())
    # The same weights, batches and draws: only the optimizer's state can make the difference.
    assert any(not torch.equal(t, second[name]) for name, t in without.items())


def test_networks_cut_otherwise_are_refused(taught: Any) -> None:
    with pytest.raises(RequestError, match="modules"):
        taught.run("models.small.depths=[1, 1]", only="transfer")
