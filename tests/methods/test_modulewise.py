"""Modules that learn side by side: what is frozen stays, and fused training is one-after-another training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss
from modnet.methods.features import FeatureObjective
from modnet.methods.incubation import IncubationObjective
from modnet.methods.m2mkd import M2mkdObjective
from modnet.recipe.stages import Features, M2mkd
from modnet.surgery import hybrid, stitched


def batch(count: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3, torch.arange(count))


def m2mkd(**values: Any) -> M2mkd:
    return M2mkd(data="d", student="s", teacher="t", meta="m", **values)


@pytest.mark.parametrize(
    ("stage", "chains"),
    [("modules", 3), ("transfer", 3), ("mimic", 3)],
)
def test_fused_training_equals_one_module_after_another(taught: Any, tmp_path: Any, stage: str, chains: int) -> None:
    fused = taught.run(only=stage)
    whole = [taught.chain(fused, stage, f"module{i}").state_dict() for i in range(chains)]
    single = type(taught)(tmp_path / "runs", taught.recipe_file)
    apart = single.run(f"stages.{stage}.fused=false", only=stage)
    assert (apart.folder(stage) / "checkpoints" / "module1").is_dir()
    assert not (fused.folder(stage) / "checkpoints" / "module1").exists()
    for i, state in enumerate(whole):
        other = single.chain(apart, stage, f"module{i}").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def test_two_modules_at_once_give_the_same_weights(taught: Any, tmp_path: Any) -> None:
    whole = taught.run(only="transfer")
    lab = type(taught)(tmp_path / "runs", taught.recipe_file)
    pairs = lab.run("stages.transfer.fused=2", only="transfer")
    assert whole.keys == pairs.keys
    assert sorted(p.name for p in (pairs.folder("transfer") / "checkpoints").iterdir()) == ["module2", "modules0-1"]
    for i in range(3):
        state = taught.chain(whole, "transfer", f"module{i}").state_dict()
        other = lab.chain(pairs, "transfer", f"module{i}").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def test_a_step_changes_the_modules_alone(tiny: Callable[..., Chain]) -> None:
    meta, teacher = tiny(), tiny(depths=(2, 2, 2), seed=1)
    students = {i: stitched(m, meta, i) for i, m in enumerate(tiny(seed=2, width=8))}
    objective = M2mkdObjective(meta, teacher, students, m2mkd())
    hosts = {"meta": meta, "teacher": teacher}
    frozen = {(host, n): p.clone() for host, chain in hosts.items() for n, p in chain.named_parameters()}
    before = {i: [p.clone() for p in c.parameters()] for i, c in students.items()}
    trainable = [p for p in objective.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for c in students.values() for p in c.parameters()}
    sum(objective(batch(), Pass()).values()).backward()
    torch.optim.SGD(trainable, lr=0.5).step()
    after = {(host, n): p for host, chain in hosts.items() for n, p in chain.named_parameters()}
    assert after.keys() == frozen.keys()
    assert all(torch.equal(p, frozen[place]) for place, p in after.items())
    assert all(p.grad is None for c in (meta, teacher) for p in c.parameters())
    for i, chain in students.items():
        moved = [not torch.equal(p, q) for p, q in zip(chain.parameters(), before[i], strict=True)]
        assert sum(moved) >= len(moved) - 1


@pytest.mark.parametrize("joined", [False, True])
def test_losses_come_module_by_module(tiny: Callable[..., Chain], joined: bool) -> None:
    """Each on a graph of its own: gradients of one are taken before the next is computed."""
    meta, teacher = tiny(), tiny(depths=(2, 2, 2), seed=1)
    students = {i: stitched(m, meta, i) for i, m in enumerate(tiny(seed=2, width=8))}
    objective = M2mkdObjective(meta, teacher, students, m2mkd(hint=0.5))
    objective.joined = joined
    learning = [p for p in objective.parameters() if p.requires_grad]
    losses = objective(batch(), Pass())
    wanted = torch.autograd.grad(torch.stack(list(losses.values())).sum(), learning)
    groups = []
    for found in objective.apart(batch(), Pass()):
        torch.stack(list(found.values())).sum().backward()
        groups.append(list(found))
        assert all(torch.equal(loss, losses[name]) for name, loss in found.items())
    assert groups == ([["module0", "module1", "module2"]] if joined else [["module0"], ["module1"], ["module2"]])
    assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(learning, wanted, strict=True))


def test_a_student_that_is_the_teacher_has_no_distillation_loss(tiny: Callable[..., Chain]) -> None:
    meta, teacher = tiny(), tiny(depths=(2, 2, 2), seed=1)
    students = {i: stitched(m.cloned(), meta, i, "identity") for i, m in enumerate(teacher)}
    kd = m2mkd(alpha=0.5, stitch="identity")
    for i, loss in enumerate(M2mkdObjective(meta, teacher, students, kd)(batch(), Pass()).values()):
        logits = hybrid(meta, teacher[i], i)(batch().x)
        assert torch.allclose(loss, 0.5 * base_loss(batch(), logits), atol=1e-7)


def test_alpha_zero_is_incubation_and_norms_differ_by_the_classes(tiny: Callable[..., Chain]) -> None:
    meta, teacher = tiny(), tiny(depths=(2, 2, 2), seed=1)
    students = {i: stitched(m, meta, i) for i, m in enumerate(tiny(seed=2, width=8))}
    plain = IncubationObjective(meta, students, 0.0)(batch(), Pass())
    pure = M2mkdObjective(meta, teacher, students, m2mkd(alpha=0.0))(batch(), Pass())
    small = M2mkdObjective(meta, teacher, students, m2mkd(alpha=1.0))(batch(), Pass())
    large = M2mkdObjective(meta, teacher, students, m2mkd(alpha=1.0, kd_norm="batchmean"))(batch(), Pass())
    for name in plain:
        assert torch.equal(plain[name], pure[name])
        assert torch.allclose(3 * small[name], large[name])


def test_a_hint_adds_the_distance_to_the_teacher_modules_own_output(tiny: Callable[..., Chain]) -> None:
    meta, teacher = tiny().eval(), tiny(depths=(2, 2, 2), seed=1).eval()
    students = {i: stitched(m, meta, i) for i, m in enumerate(tiny(seed=2, width=8))}
    plain = M2mkdObjective(meta, teacher, students, m2mkd())(batch(), Pass())
    hinted = M2mkdObjective(meta, teacher, students, m2mkd(hint=0.5))(batch(), Pass())
    entering = batch().x
    for i in range(2):
        distance = F.smooth_l1_loss(students[i](entering), teacher[i](entering))
        assert torch.allclose(hinted[f"module{i}"], plain[f"module{i}"] + 0.5 * distance)
        entering = meta[i](entering)
    assert torch.equal(hinted["module2"], plain["module2"])


def test_a_hint_in_incubation_is_m2mkd_without_distillation_from_the_meta_itself(tiny: Callable[..., Chain]) -> None:
    meta = tiny().eval()
    modules = {i: stitched(m, meta, i, "identity") for i, m in enumerate(tiny(depths=(2, 2, 2), seed=1))}
    hinted = IncubationObjective(meta, modules, 0.0, hint=0.5)(batch(), Pass())
    taught = M2mkdObjective(meta, meta, modules, m2mkd(alpha=0.0, hint=0.5, stitch="identity"))(batch(), Pass())
    assert hinted["module0"] > IncubationObjective(meta, modules, 0.0)(batch(), Pass())["module0"]
    for i, module in modules.items():
        alone = IncubationObjective(meta, {i: module}, 0.0, hint=0.5)(batch(), Pass())
        assert torch.equal(alone[f"module{i}"], hinted[f"module{i}"])
        assert torch.allclose(taught[f"module{i}"], hinted[f"module{i}"])


def test_feature_loss_is_the_distance_to_the_teachers_own_features(tiny: Callable[..., Chain]) -> None:
    teacher = tiny(depths=(2, 2, 2), seed=1).eval()
    students = {i: stitched(m, teacher, i, "linear") for i, m in enumerate(tiny(seed=2, width=8))}
    stage = Features(data="d", student="s", teacher="t", alpha=1.0)
    losses = FeatureObjective(teacher, students, stage)(batch(), Pass())
    x = batch().x
    inside = teacher[0](x)
    expected = F.smooth_l1_loss(students[1](inside), teacher[1](inside))
    assert torch.allclose(losses["module1"], expected)
    copy = {i: m.cloned() for i, m in enumerate(teacher)}
    own = FeatureObjective(teacher, copy, stage)(batch(), Pass())
    assert all(abs(loss.item()) < 1e-6 for loss in own.values())


def test_incubation_spreads_drop_path_over_the_hybrid(taught: Any) -> None:
    inputs = taught.run(only="modules")
    rates = [leaf.drop_path for leaf in taught.chain(inputs, "modules", "module0").leaves if leaf.role == "block"]
    assert rates == pytest.approx([0.0, 0.1 / 3])  # hybrid of 2 + 1 + 1 blocks
    rates = [leaf.drop_path for leaf in taught.chain(inputs, "modules", "module2").leaves if leaf.role == "block"]
    assert rates == pytest.approx([0.2 / 3, 0.1])
