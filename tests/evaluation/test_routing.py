"""What is said of routers: counts, entropies and what experts tell of classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.chain import Chain, Pass, Port
from modnet.evaluation.routing import LayerRouting, mutual_information, observe
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import VMoE


def network(**values: Any) -> Chain:
    params = VMoE.model_validate(
        {"width": 16, "heads": 2, "depths": (1, 1), "patch": 4, "placement": (1,), "experts": 4, **values}
    )
    with Key.of(0).forked():
        return vmoe(params, Port.of("image", channels=1, size=8), 3)


def layer(pairs: Tensor, labels: Tensor, **values: Any) -> LayerRouting:
    experts = pairs.shape[1]
    held: dict[str, Any] = {
        "block": 0, "top_k": 1, "pairs": pairs, "labels": labels, "together": torch.zeros(experts, experts),
        "kept": int(pairs.sum()), "lost": 0, "certain": 0.0, "mean_probs": torch.full((experts,), 1 / experts),
        "patches": None,
    }  # fmt: skip
    return LayerRouting(**(held | values))


def test_all_pairs_are_counted_whatever_the_batch(random_images: Callable[..., Any]) -> None:
    data, chain = random_images(count=37), network().train()
    seen = observe(chain, data, data, batch=10, each=2)
    again = observe(chain, data, data, batch=37, each=2)
    assert chain.training
    (found,) = seen.layers.values()
    assert (found.block, found.top_k) == (1, 2)
    assert found.pairs.sum(1).tolist() == [2 * 5] * 37  # a class token and four patches
    assert torch.equal(found.pairs, again.layers["2"].pairs)
    assert torch.equal(found.together.diagonal(), found.pairs.sum(0))
    assert seen.labels.tolist() == [0, 0, 1, 1, 2, 2]
    ctx = Pass(wanted=frozenset({2}))
    chain.eval()(data.normalise(seen.images), ctx)
    assert found.patches is not None
    assert torch.equal(found.patches, ctx.stats["2.experts"][:, 1:, 0].view(6, 2, 2))
    assert found.numbers()["dropped"] == 0


def test_dropped_choices_and_lost_tokens(random_images: Callable[..., Any]) -> None:
    data = random_images(count=8)
    chain = network(router={"name": "vmoe", "capacity_eval": 0.25, "round_to": 1, "group": None})
    (found,) = observe(chain, data, data, batch=8).layers.values()
    places = math.ceil(8 * 5 * 2 * 0.25 / 4)
    kept = found.pairs.sum(0).clamp(max=places).sum().item()
    assert found.numbers()["dropped"] == pytest.approx(1 - kept / 80)
    assert 0 < found.numbers()["lost"] < 1


def test_experts_that_tell_the_class_and_experts_that_tell_nothing() -> None:
    labels = torch.arange(40) % 4
    sure = layer(torch.eye(4, dtype=torch.int64)[labels], labels).numbers()
    assert sure["class_mi"] == pytest.approx(math.log(4))
    assert sure["class_nmi"] == pytest.approx(1)
    assert sure["class_mi_chance"] < 0.3
    assert sure["load_cv"] == 0
    assert sure["marginal_entropy"] == pytest.approx(1)
    even = layer(torch.ones(40, 4, dtype=torch.int64), labels).numbers()
    assert even["class_mi"] == pytest.approx(0, abs=1e-9)
    one = layer(torch.tensor([[3, 0, 0, 0]]).expand(40, 4), labels).numbers()
    assert (one["dead"], one["load_max"], one["class_nmi"]) == (3, 4, 0)


def test_mutual_information_by_its_definition() -> None:
    joint = torch.rand(3, 5, generator=Key.of(1).generator(), dtype=torch.float64)
    share = joint / joint.sum()
    expected = (share * (share / (share.sum(0) * share.sum(1, keepdim=True))).log()).sum().item()
    assert mutual_information(joint) == pytest.approx(expected)


def test_a_chain_without_experts_is_refused(tiny: Callable[..., Chain], random_images: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="no experts"):
        observe(tiny(), random_images(), random_images())
