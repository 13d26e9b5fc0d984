"""The confidence of a small network, and the cascade that asks a large one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.confidence import Cascade, dispersion, mixed, mowst_loss, mowst_star_loss
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT

FEW = settings(max_examples=15, deadline=None)

GATE = {"kind": "perceptron", "sees": "dispersion", "hidden": 4, "layers": 2, "batch_norm": False}


def network(width: int = 8, classes: int = 5, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    params = ViT(width=width, heads=2, depths=(1,), patch=4)
    return vit(params, Port.of("image", channels=1, size=8), classes).eval()


def cascade(**changes: object) -> Cascade:
    torch.manual_seed(2)
    return Cascade(network(), network(16, seed=1), {**GATE, **changes}).eval()


@FEW
@given(st.integers(2, 12), st.integers(0, 10))
def test_dispersion_is_0_for_equal_and_1_for_single_probabilities(classes: int, hot: int) -> None:
    even, single = torch.zeros(classes), torch.zeros(classes)
    single[hot % classes] = 200.0
    spread = dispersion(torch.stack([even, single]))
    torch.testing.assert_close(spread, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=1e-5, rtol=0)


def test_the_confidence_gives_no_gradient_to_the_small_network() -> None:
    leaf, x = cascade(sees="probabilities"), torch.randn(3, 1, 8, 8)
    weak, _, confidence = leaf.both(x, Pass())
    (grad,) = torch.autograd.grad(confidence.sum(), weak, allow_unused=True)
    assert grad is None


def test_losses_at_the_ends_are_those_of_one_network() -> None:
    weak, strong, target = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 4
    small, large = (torch.nn.functional.cross_entropy(z, target, reduction="none") for z in (weak, strong))
    for c, one in ((1.0, small), (0.0, large)):
        for loss in (mowst_loss, mowst_star_loss):
            torch.testing.assert_close(loss(weak, strong, torch.full((6,), c), target), one)
    half = torch.full((6,), 0.5)
    torch.testing.assert_close(mixed(weak, strong, half), (weak + strong) / 2)


@pytest.mark.parametrize("kind", ["perceptron", "hyper"])
def test_only_hard_images_go_to_the_large_network(kind: str) -> None:
    leaf, x = cascade(kind=kind), torch.randn(6, 1, 8, 8)
    weak, strong, _ = leaf.both(x, Pass())
    scores = leaf.score(weak).detach()
    leaf.threshold.fill_(float(scores.sort().values[3]))
    ctx = Pass()
    out = Chain([leaf])(x, ctx)
    expected = torch.where((scores < leaf.threshold)[:, None], strong, weak)
    torch.testing.assert_close(out, expected)
    assert float(ctx.stats["0.strong"]) == 0.5
    for cut, one in ((-math.inf, weak), (math.inf, strong)):
        leaf.threshold.fill_(cut)
        torch.testing.assert_close(Chain([leaf])(x), one)


@FEW
@given(st.integers(2, 6), st.integers(0, 999))
def test_plain_scores_are_read_off_the_probabilities(classes: int, seed: int) -> None:
    logits = 4 * Key.of(seed).normal(torch.arange(5), classes)
    probs = logits.double().softmax(-1)
    first, second = probs.topk(2).values.T
    expected = {
        "max-probability": first,
        "margin": first - second,
        "entropy": 1 + (probs * probs.log()).sum(-1) / math.log(classes),
    }
    for kind, score in expected.items():
        leaf = Cascade(network(classes=classes), network(16, classes, seed=1), {"kind": kind})
        assert not list(leaf.gate.parameters())
        torch.testing.assert_close(leaf.score(logits).double().sigmoid(), score, atol=1e-6, rtol=1e-4)


def test_nearly_certain_images_stay_apart() -> None:
    leaf = Cascade(network(), network(16, seed=1), {"kind": "max-probability"})
    logits = torch.zeros(3, 5)
    logits[:, 0] = torch.tensor([19.0, 20.0, 21.0])  # all of probability 1 in float32
    assert leaf.score(logits).diff().gt(0).all()


def test_a_cascade_is_stored_with_its_threshold() -> None:
    leaf, x = cascade(), torch.randn(4, 1, 8, 8)
    leaf.threshold.fill_(0.25)
    again = rebuild(describe(Chain([leaf]))).eval()
    again.load_state_dict(Chain([leaf]).state_dict())
    assert torch.equal(again(x), Chain([leaf])(x))
    assert set(leaf.matrices()) <= {name for name, _ in leaf.named_parameters()}


def test_networks_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(RequestError, match="must give the same"):
        Cascade(network(classes=4), network(classes=5), GATE)


def test_the_reference_mixes_probabilities() -> None:
    leaf = Cascade(network(), network(16, seed=1), GATE, answer="mix", quirk_probabilities=True).eval()
    out: Tensor = Chain([leaf])(torch.randn(3, 1, 8, 8))
    torch.testing.assert_close(out.sum(1), torch.ones(3))
