"""V-MoE: placement, sizes, cost, and everything that a chain can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

import modnet.recipe.models  # noqa: F401 - registers the names
from modnet.chain import Chain, Pass, Port, describe, parameter_count, rebuild
from modnet.engine.muon import Muon as MuonOptimizer
from modnet.engine.muon import newton_schulz, rate_factor
from modnet.engine.optimizers import declared_matrices, muon
from modnet.evaluation import cost as costs
from modnet.evaluation.cost import cost, example, training_flops
from modnet.layers.moe import MoEBlock
from modnet.models.vit import vit
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import ViT, VMoE
from modnet.recipe.routers import places
from modnet.recipe.training import Muon
from modnet.registry import MODELS
from modnet.surgery import assemble, cut, stitched, transplant

PORT = Port.of("image", channels=1, size=8)


def network(**values: Any) -> Chain:
    params = MODELS.read({"name": "vmoe", "width": 16, "patch": 2, "experts": 4, **values})
    with Key.of(0, "vmoe").forked():
        return vmoe(params, PORT, 10)


@pytest.mark.parametrize(
    ("placement", "blocks", "expected"),
    [
        ("all", 3, [0, 1, 2]),
        ("every-2", 8, [1, 3, 5, 7]),
        ("every-3", 8, [2, 5]),
        ("last-2", 8, [5, 7]),
        ("last-2", 12, [9, 11]),
        ("contiguous-last-2", 8, [6, 7]),
        ((4, 0), 5, [0, 4]),
    ],
)
def test_placement(placement: Any, blocks: int, expected: list[int]) -> None:
    assert places(placement, blocks) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"placement": "last-3"},
        {"placement": (4,)},
        {"placement": "first-2"},
        {"placement": ()},
        {"top_k": 9},
        {"top_k": 1},
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VMoE(depths=(2, 2), **values)


def test_names_read_and_the_base_model_has_its_parameters() -> None:
    port = Port.of("image", channels=3, size=224)
    params = MODELS.read("vmoe-b")
    with torch.device("meta"):
        chain = vmoe(params, port, 1000)
    dense, mlp = 86_567_656, 2 * 768 * 3072 + 768 + 3072
    assert parameter_count(chain) == dense + 12 * (7 * mlp + 8 * 768 + 8)
    published = MODELS.read("vmoe-s")
    assert (published.router.capacity, published.router.capacity_eval, published.router.group) == (1.05, 4.0, 8)


@pytest.mark.parametrize("router", ["top-k-softmax", "softmax-top-k", "noisy-top-k"])
def test_cost_counts_active_products_only(router: str) -> None:
    chain = network(placement=[1], router=router)
    dense = vit(ViT(width=16, patch=2), PORT, 10)
    tokens, mlp = 17, 2 * 16 * 64
    gates = tokens * 16 * 4
    assert cost(chain, PORT).macs == cost(dense, PORT).macs + tokens * mlp + gates
    with costs.flop_counter() as counter:
        chain.eval()(example(PORT), Pass(wanted=frozenset(range(6)))).sum().backward()  # all tokens of all leaves
    assert counter.get_total_flops() == training_flops(chain, PORT)
    frozen = cost(chain, PORT).macs * 2
    assert training_flops(chain.frozen(), PORT) == frozen


def test_it_is_cut_assembled_rebuilt_and_transplanted() -> None:
    chain, x = network(depths=[1, 2, 1]).eval(), Key.of(2).normal(torch.arange(3), 64).view(3, 1, 8, 8)
    expected = chain(x)
    assert torch.equal(assemble(cut(chain, [2, 2]))(x), expected)
    again = rebuild(describe(chain))
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again.eval()(x), expected)
    host = vit(ViT(width=8, depths=(1, 1, 1), heads=2, patch=2), PORT, 10)
    students = [stitched(module, host, i) for i, module in enumerate(chain)]
    fresh = network(depths=[1, 2, 1]).eval()
    with torch.no_grad():
        for p in fresh.parameters():
            p.add_(1)
    assert not transplant(students, fresh).left
    assert torch.equal(fresh(x), expected)


def test_muon_sees_each_expert() -> None:
    chain = network(placement=[0])
    leaf = chain.leaves[1]
    assert isinstance(leaf, MoEBlock)
    declared = declared_matrices(chain)
    assert declared["1.moe.experts.fc1.weight"] == 4
    before = leaf.moe.experts.fc1.weight.detach().clone()
    optimizer = muon(Muon(), chain)
    assert isinstance(optimizer, MuonOptimizer)
    optimizer.dtype = torch.float32
    x = Key.of(2).normal(torch.arange(3), 64).view(3, 1, 8, 8)
    chain.train()(x, Pass(Key.of(0))).square().sum().backward()
    optimizer.step()
    stack = leaf.moe.experts.fc1.weight
    assert stack.grad is not None
    rate = Muon().lr * rate_factor(stack.shape[1], stack.shape[2], Muon().adjust_lr)
    expected = -rate * newton_schulz(stack.grad, Muon().ns_steps, torch.float32)
    torch.testing.assert_close(stack.detach() - before, expected, atol=1e-4, rtol=1e-2)
