"""What one step of Deep Incubation and of m2mKD may change, and what it may not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modnet.chain import Chain, Port
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.layers.block import Block
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.surgery import hybrid, stitched, without_stitches


def build(depths: tuple[int, ...], seed: int = 0, width: int = 8) -> Chain:
    params = ViT(width=width, heads=2, depths=depths, patch=4)
    with Key.of(seed).forked():
        return vit(params, Port.of("image", channels=1, size=8), 3).eval()


def images(count: int = 2, seed: int = 0) -> Tensor:
    return Key.of(seed, "x").normal(torch.arange(count), 64).view(count, 1, 8, 8)


def step(chain: Chain, parameters: list[nn.Parameter], loss: Tensor) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_step_of_module_training_changes_that_module_alone(i: int) -> None:
    meta, target = build((1, 1, 1)), build((2, 2, 2), seed=1)
    before = {"meta": snapshot(meta), "target": snapshot(target)}
    mixed = hybrid(meta, target[i], i).train()
    step(mixed, list(target[i].parameters()), mixed(images()).square().mean())
    assert_equal(before["meta"], snapshot(meta))
    names = {id(p): name for name, p in target.named_parameters()}
    own = {names[id(p)] for p in target[i].parameters()}
    changed = {n for n, t in snapshot(target).items() if not torch.equal(t, before["target"][n])}
    assert changed
    assert changed <= own


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_hybrid_with_the_metas_own_module_is_the_meta(i: int) -> None:
    meta, x = build((1, 1, 1)), images()
    assert torch.equal(hybrid(meta, meta[i].cloned(), i)(x), meta(x))


def test_a_student_equal_to_the_teacher_leaves_only_the_base_loss() -> None:
    meta, teacher, x = build((1, 1, 1)), build((2, 2, 2), seed=1), images()
    batch = Batch(x, torch.tensor([0, 2]), torch.arange(2))
    for i in range(3):
        student = stitched(teacher[i].cloned(), meta, i, "identity")
        entering, tail = meta[:i](x), meta[i + 1 :].frozen()
        s, t = tail(student(entering)), tail(teacher[i](entering))
        assert torch.equal(s, t)
        assert kd_term(s, t, 2.0).item() == pytest.approx(0, abs=1e-7)
        base = base_loss(batch, s)
        loss = blend(base, kd_term(s, t), 0.3)
        torch.testing.assert_close(loss, 0.7 * base)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_step_of_m2mkd_teaches_student_and_stitches_alone(i: int) -> None:
    meta, teacher, student = build((1, 1, 1)), build((2, 2, 2), seed=1), build((1, 1, 1), 2, 4)
    learner = stitched(student[i], meta, i)
    before = snapshot(meta), snapshot(teacher), snapshot(learner)
    entering, tail = meta[:i].frozen()(images()), meta[i + 1 :].frozen()
    with torch.no_grad():
        taught = tail(teacher[i](entering))
    logits = tail(learner(entering))
    loss = blend(logits.square().mean(), kd_term(logits, taught, 1.0, "soft", "batchmean"), 0.5)
    step(learner, list(learner.parameters()), loss)
    assert_equal(before[0], snapshot(meta))
    assert_equal(before[1], snapshot(teacher))
    changed = {n for n, t in snapshot(learner).items() if not torch.equal(t, before[2][n])}
    for position, leaf in enumerate(learner.leaves):
        assert any(n.startswith(f"{position}.") for n in changed), type(leaf).__name__


def test_dropping_stitches_leaves_the_distilled_tensors() -> None:
    meta, student = build((1, 1, 1)), build((1, 1, 1), 2, 4)
    learner = stitched(student[1], meta, 1)
    bare = without_stitches(learner)
    assert [type(leaf) for leaf in bare.leaves] == [Block]
    assert_equal(snapshot(bare), snapshot(student[1]))


def snapshot(chain: Chain) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in chain.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
