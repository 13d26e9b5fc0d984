"""A meta network for a teacher that was trained end to end: hybrids as good as the teacher, or a stage that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.errors import RunFailed
from modnet.methods.alignment import Alignment, AlignObjective, feature_distance
from modnet.methods.base import Inputs
from modnet.randomness import Key
from modnet.recipe.stages import Align
from tests.methods.conftest import Lab

RECIPE = """
name: aligned
data: {all: {name: digits}}
models:
  large: {name: vit, width: 32, depths: [2, 2], patch: 4, pool: mean}
  small: {name: vit, width: 16, depths: [1, 1], patch: 4, pool: mean}
defaults: {data: all, batch: 32, optimizer: {name: muon, lr: 0.02, others: {lr: 0.01}}}
stages:
  teacher: {run: train, model: large, epochs: 6, evaluate_every: 6}
  transfer:
    run: distill
    student: small
    teacher: teacher
    meta: {from: teacher, epochs: 6, evaluate_every: 6}
  ordinary: {run: train, model: transfer_meta_model, epochs: 6, evaluate_every: 6, seed: 1}
"""


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3, torch.arange(count))


def stage(**values: Any) -> Align:
    return Align(data="d", student="s", teacher="t", **values)


def alignment(inputs: Inputs) -> Alignment:
    found = inputs.recipe.stages["transfer_meta"]
    assert isinstance(found, Align)
    return Alignment(found, inputs)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "r.yaml").write_text(RECIPE)
    return Lab(folder / "runs", folder / "r.yaml")


def test_every_hybrid_is_close_to_the_teacher(lab: Lab) -> None:
    inputs = lab.run(only="transfer_meta")
    result = inputs.store.result(inputs.keys["transfer_meta"])
    assert result["teacher_val_top1"] > 80
    assert min(result["hybrid_val_top1"]) > result["teacher_val_top1"] - 8  # of 140 images, 8 points are 11
    assert result["meta_val_top1"] > result["teacher_val_top1"] - 8
    assert lab.chain(inputs, "transfer_meta").depths == (1, 1)


def test_an_ordinary_meta_fits_no_such_teacher(lab: Lab) -> None:
    inputs = lab.run(only="transfer_meta")
    teacher = lab.chain(inputs, "teacher")
    inputs = lab.run(only="ordinary")
    ordinary = lab.chain(inputs, "ordinary")
    method = alignment(inputs)
    assert method.measured(ordinary)["top1"] > 80
    assert method.measured(teacher[:1] + ordinary[1:])["top1"] < 50


def test_m2mkd_goes_on_with_the_aligned_meta(lab: Lab) -> None:
    inputs = lab.run(only="transfer")
    assert len(inputs.modules("transfer")) == 2


def test_a_hybrid_at_chance_fails_the_stage(lab: Lab) -> None:
    with pytest.raises(RunFailed) as caught:
        lab.run("stages.transfer.meta.epochs=0", only="transfer_meta")
    told = str(caught.value)
    assert "not aligned with teacher 'teacher': with the teacher's module" in told
    assert "guessing gives 10.00 %" in told
    assert "What helps: more than epochs: 0" in told


@pytest.mark.parametrize(
    ("hybrids", "teacher", "fails"),
    [
        ([90.0, 18.1], 90.0, False),
        ([90.0, 17.9], 90.0, True),  # less than a tenth of the teacher's lead of 80 points over guessing
        ([10.0, 10.0], 12.0, False),  # 140 images: a teacher at 12 % may be guessing itself
        ([10.0, 10.0], 30.0, True),
    ],
)
def test_what_counts_as_chance(lab: Lab, hybrids: list[float], teacher: float, fails: bool) -> None:
    inputs = lab.run(only="teacher")
    method = alignment(inputs)
    if fails:
        with pytest.raises(RunFailed):
            method.check(hybrids, teacher)
    else:
        method.check(hybrids, teacher)


def test_a_meta_that_is_the_teacher_has_no_distance(tiny: Callable[..., Chain]) -> None:
    teacher = tiny(depths=(2, 2, 2)).eval()
    objective = AlignObjective(teacher, teacher.cloned(), stage(alpha=1.0, mix=1.0)).eval()
    losses = objective(batch(), Pass(Key.of(0), batch().ids))
    assert set(losses) == {"module0", "module1", "module2"}
    assert all(abs(loss.item()) < 1e-6 for loss in losses.values())


def test_modules_see_the_teachers_features_or_their_own(tiny: Callable[..., Chain]) -> None:
    teacher, meta = tiny(depths=(2, 2, 2)).eval(), tiny(seed=1).eval()
    x = batch().x
    theirs, own = teacher[0](x), meta[0](x)
    target = teacher[:2](x)
    for mix, entering in ((0.0, theirs), (1.0, own)):
        losses = AlignObjective(teacher, meta, stage(mix=mix)).eval()(batch(), Pass(Key.of(0), batch().ids))
        assert torch.allclose(losses["module1"], feature_distance(meta[1](entering), target, prefix=1))
    objective = AlignObjective(teacher, meta, stage(mix=0.5))
    mixed = objective.mixed(own, theirs, batch().ids, Pass(Key.of(3)))
    picked = [torch.equal(row, mine) for row, mine in zip(mixed, own, strict=True)]
    assert True in picked
    assert False in picked
    assert all(torch.equal(row, theirs[i]) for i, row in enumerate(mixed) if not picked[i])
    half = objective.mixed(own[3:], theirs[3:], batch().ids[3:], Pass(Key.of(3)))
    assert torch.equal(half, mixed[3:]), "the choice belongs to the sample, not to its place in the batch"


def test_no_gradient_passes_between_modules_or_into_the_teacher(tiny: Callable[..., Chain]) -> None:
    teacher, meta = tiny(depths=(2, 2, 2)), tiny(seed=1)
    losses = AlignObjective(teacher, meta, stage(mix=1.0))(batch(), Pass(Key.of(0), batch().ids))
    losses["module2"].backward()
    assert all(p.grad is None for module in (teacher, meta[:2]) for p in module.parameters())
    assert any(p.grad is not None for p in meta[2].parameters())


def test_the_distance_counts_the_stream_and_what_blocks_read_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 5, 8, generator=generator)
    assert feature_distance(target, target).item() == 0
    other = target.flip(0)
    assert torch.allclose(feature_distance(3 * target, 3 * other), feature_distance(target, other), atol=1e-4)
    scaled = feature_distance(1.1 * target, target)  # normalised tokens are the same: the stream alone differs
    assert torch.allclose(scaled, 0.01 * target.square().mean() / target.var(), atol=1e-4)


def test_a_class_token_counts_as_much_as_all_patches() -> None:
    target = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
    token, patches = target.clone(), target.clone()
    token[:, :1] += 1.0
    patches[:, 1:] += 1.0
    whole = feature_distance(target + 1.0, target, prefix=1)
    assert torch.allclose(feature_distance(token, target, 1) + feature_distance(patches, target, 1), whole)
    assert feature_distance(token, target, 1) > 4 * feature_distance(token, target)
    assert feature_distance(token, target, 0) == feature_distance(token, target, 9), "no patches, or no class token"


def test_modules_keep_the_weights_of_one_epoch(lab: Lab, tmp_path: Path) -> None:
    inputs = lab.run("stages.transfer.meta.evaluate_every=1", "stages.transfer.meta.epochs=3", only="transfer_meta")
    result = inputs.store.result(inputs.keys["transfer_meta"])
    shared = {(metrics["aligned"], metrics["meta_top1"]) for metrics in result["metrics"].values()}
    assert len(shared) == 1
    method = alignment(inputs)
    assert method.measured(lab.chain(inputs, "transfer_meta"))["top1"] == pytest.approx(result["meta_val_top1"])
