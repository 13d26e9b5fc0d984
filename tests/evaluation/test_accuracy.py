"""Scores: exact on partial batches, blind to the batch size, and without side effects."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modnet.chain import Chain
from modnet.evaluation.accuracy import Scores, measure, predict
from modnet.evaluation.shift import measure_suite
from modnet.evaluation.throughput import throughput

Tiny = Callable[..., Chain]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """The scores of given logits: a set of "images" that are the logits, and a network that passes them on."""
    images = SimpleNamespace(batches=lambda size: zip(logits.split(size), labels.split(size), strict=True))
    return measure(Chain([nn.Identity()]), images, SimpleNamespace(normalise=lambda given: given))


@pytest.mark.parametrize("batch", [1, 5, 8, 36, 37, 512])
def test_the_batch_size_changes_nothing(tiny: Tiny, random_images: Any, batch: int) -> None:
    chain, data = tiny(classes=7), random_images(classes=7)
    found, whole = measure(chain, data, data, batch), measure(chain, data, data, len(data))
    assert found.count == 37
    assert (found.top1, found.top5) == (whole.top1, whole.top5)
    assert found.nll == pytest.approx(whole.nll, abs=1e-6)
    assert found.ece == pytest.approx(whole.ece, abs=1e-5)


def test_scores_are_what_their_names_say() -> None:
    probabilities = torch.tensor(
        [
            [0.60, 0.10, 0.10, 0.10, 0.05, 0.05],
            [0.30, 0.40, 0.10, 0.10, 0.06, 0.04],
            [0.01, 0.02, 0.90, 0.03, 0.02, 0.02],
            [0.20, 0.10, 0.15, 0.25, 0.25, 0.05],
        ]
    )
    scores = score(probabilities.log(), torch.tensor([0, 0, 2, 5]))
    assert scores.top1 == 50
    assert scores.top5 == 75
    assert scores.nll == pytest.approx(-sum(torch.tensor([0.6, 0.3, 0.9, 0.05]).log().tolist()) / 4)
    # each row is alone in its bin of width 1/15: |1 - .6|, |0 - .4|, |1 - .9|, |0 - .25|
    assert scores.ece == pytest.approx((0.4 + 0.4 + 0.1 + 0.25) / 4, abs=1e-6)
    assert set(scores.as_dict()) == {"top1", "top5", "nll", "ece"}


def test_calibration_averages_within_a_bin() -> None:
    confident = torch.tensor([[0.97, 0.03], [0.99, 0.01]]).log()
    scores = score(confident, torch.tensor([0, 1]))  # both in the last bin: |0.5 - 0.98|
    assert scores.ece == pytest.approx(0.48, abs=1e-6)
    assert scores.top5 == 100


def test_a_certain_and_right_network_is_perfectly_calibrated() -> None:
    scores = score(torch.eye(4) * 1000, torch.arange(4))
    assert (scores.top1, scores.ece, scores.nll) == (100, 0, 0)


def test_a_mask_leaves_the_other_classes_out(tiny: Tiny, random_images: Any) -> None:
    chain, data = tiny(classes=4), random_images(classes=2)
    mask = torch.tensor([True, True, False, False])
    masked = measure(chain, data, data, mask=mask)
    logits = predict(chain, data, data)
    hits = (logits[:, :2].argmax(1) == data.labels).float().mean()
    assert masked.top1 == pytest.approx(100 * hits.item(), abs=1e-4)
    assert masked.nll < measure(chain, data, data).nll


def test_predictions_come_in_order(tiny: Tiny, random_images: Any) -> None:
    chain, data = tiny().eval(), random_images()
    found = predict(chain, data, data, batch=10)
    torch.testing.assert_close(found, chain(data.normalise(data.images)).detach(), atol=1e-6, rtol=1e-5)
    assert not found.is_inference()
    hits = (found.argmax(1) == data.labels).sum().item()
    assert measure(chain, data, data).top1 == 100 * hits / len(data)


def test_every_parts_mode_is_as_before(tiny: Tiny, random_images: Any) -> None:
    data, chain = random_images(), tiny().train()
    chain.leaves[1].eval()  # part of a network may be in evaluation for its own reasons
    mixed = chain[:1].frozen() + chain[1:]
    for network in (chain, mixed):
        before = [m.training for m in network.modules()]
        measure(network, data, data)
        assert [m.training for m in network.modules()] == before


def test_modes_come_back_after_a_failure(tiny: Tiny, random_images: Any) -> None:
    chain = tiny().train()
    with pytest.raises(RuntimeError):
        measure(chain, random_images(channels=2), random_images())
    assert all(module.training for module in chain.modules())


def test_an_empty_set_has_no_score(tiny: Tiny, random_images: Any) -> None:
    with pytest.raises(ValueError, match="no image"):
        measure(tiny(), random_images(count=0), random_images())


def test_training_goes_on_after_measuring(tiny: Tiny, random_images: Any) -> None:
    chain, data = tiny(), random_images()
    measure(chain, data, data)
    chain(data.normalise(data.images)).sum().backward()
    assert all(p.grad is not None for p in chain.parameters())


def test_a_suite_weighs_its_parts_alike(tiny: Tiny, random_images: Any) -> None:
    images = {"sketch": random_images(10, seed=1), "poster": random_images(30, seed=2)}
    chain, suite = tiny(), SimpleNamespace(dataset=random_images(), parts=images, mask=None)
    scores = measure_suite(chain, suite)
    parts = {name: measure(chain, part, part) for name, part in images.items()}
    assert scores.parts == parts
    assert scores.mean.top1 == pytest.approx((parts["sketch"].top1 + parts["poster"].top1) / 2)
    assert scores.mean.count == 40
    assert list(scores.table()) == ["sketch", "poster", "mean"]


def test_throughput_is_the_median_batch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 10, 11, 20, 22, 30, 34])  # a warm-up of 9 s, then 1, 2 and 4 s
    monkeypatch.setattr("modnet.evaluation.throughput.time.perf_counter", lambda: next(clock))
    chain = tiny()
    assert chain.takes is not None
    assert throughput(chain, chain.takes, batch=6, repeats=3) == 3


def test_networks_without_parameters_can_be_scored(random_images: Any) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    data = random_images()
    assert 0 <= measure(Chain([Mean()]), data, data).top1 <= 100
