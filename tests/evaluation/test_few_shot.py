from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modnet.chain import Chain, Module, Pass, Port
from modnet.errors import RequestError
from modnet.evaluation.accuracy import predict
from modnet.evaluation.few_shot import classifier, features, head_accuracies, tuned_heads
from modnet.layers.branch import Branch
from modnet.randomness import Key

Tiny = Callable[..., Chain]


def test_features_are_what_the_classifier_sees(tiny: Tiny, random_images: Any) -> None:
    chain, data = tiny().train(), random_images()
    layer = classifier(chain)
    assert layer is chain.leaves[-1].head
    found = features(chain, data, data, batch=10)
    assert found.shape == (37, 16)
    torch.testing.assert_close(layer(found), predict(chain, data, data), atol=1e-5, rtol=1e-5)
    assert not found.is_inference()
    assert chain.training
    assert not layer._forward_pre_hooks


def test_networks_without_one_linear_classifier_are_refused(tiny: Tiny, random_images: Any) -> None:
    stem, head = tiny()[:2], tiny()[2:]
    ensemble = stem + Chain([Branch([head, tiny(seed=1)[2:]], "mean")])
    with pytest.raises(RequestError, match="Branch has 2"):
        classifier(ensemble)

    class Pooled(Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_logits = nn.Linear(16, 3)
            self.gives = Port.of("logits", classes=3, per="image")

        def forward(self, x: torch.Tensor, ctx: Pass) -> torch.Tensor:
            return self.to_logits(x).mean(1)

    with pytest.raises(RequestError, match="several vectors an image; give tune: all"):
        features(stem + Chain([Pooled()]), random_images(), random_images())


def clusters(episodes: int, each: int, ways: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around one centre a class, other centres in every episode, and their labels."""
    source = Key.of(seed, "points").generator()
    centres = 3 * torch.randn(episodes, ways, 1, 8, generator=Key.of(0, "centres").generator())
    points = centres + torch.randn(episodes, ways, each, 8, generator=source)
    return points.flatten(1, 2), torch.arange(ways).repeat_interleave(each).expand(episodes, -1)


def test_heads_learn_what_can_be_learned() -> None:
    (near, labels), (far, asked) = clusters(4, 5), clusters(4, 50, seed=1)
    scores = head_accuracies(tuned_heads(near, labels, 3, 100, 1e-2, Key.of(0)), far, asked)
    assert len(scores) == 4
    assert min(scores) > 95
    start = head_accuracies(tuned_heads(near, labels, 3, 0, 1e-2, Key.of(0)), far, asked)
    assert sum(start) / 4 < 70


def test_episodes_side_by_side_are_episodes_one_after_another() -> None:
    near, labels = clusters(3, 5)
    together = tuned_heads(near, labels, 3, 30, 1e-2, Key.of(0))
    same = near[:1].expand(3, -1, -1)
    changed = tuned_heads(torch.cat([near[:1], same[1:] * 100]), labels, 3, 30, 1e-2, Key.of(0))
    for one, other in zip(together, changed, strict=True):
        torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=0)
        assert not torch.allclose(one[1], other[1])
