"""Low-rank experts on attention projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.head import Head
from modnet.layers.lora import Adapted, LowRank, Weights, orthogonality, specialisation
from modnet.models.vit import vit
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import ViT, VMoE
from modnet.surgery.lora import adapted, folded, load_adapters, stacks_of

FEW = settings(max_examples=15, deadline=None)

IMAGE = Port.of("image", channels=1, size=8)
SPEC: dict[str, Any] = {
    "targets": ["q", "k", "v", "o"],
    "experts": 3,
    "rank": 2,
    "scale": 0.5,
    "top_k": None,
    "hard_soft": False,
    "balance": 0.0,
    "entropy": 0.0,
    "orthogonal": 0.0,
    "norm": "l1",
}


def network(family: str = "vit") -> Chain:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 8, "heads": 2, "depths": (1, 1), "patch": 4}
    return (vit(ViT(**sizes), IMAGE, 5) if family == "vit" else vmoe(VMoE(**sizes), IMAGE, 5)).eval()


def moved(chain: Chain) -> Chain:
    """Adapters that do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for leaf in chain.leaves:
            if isinstance(leaf, Adapted):
                for part in leaf.adapters.values():
                    assert isinstance(part, LowRank)
                    part.b.normal_()
    return chain


@pytest.mark.parametrize("family", ["vit", "vmoe"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_fresh_adapters_change_nothing_and_the_network_stays(family: str, top_k: int | None) -> None:
    plain, x = network(family), torch.randn(3, 1, 8, 8)
    chain = adapted(plain, {**SPEC, "top_k": top_k}, Key.of(0)).eval()
    whole = Pass(wanted=frozenset(range(len(plain.leaves))))  # all tokens of the last block, as adapters need them
    assert torch.equal(chain(x), plain(x, whole))
    assert chain.depths == plain.depths
    learning = {name for name, p in chain.named_parameters() if p.requires_grad}
    assert all(".adapters." in name or name.startswith("3.") for name in learning)
    assert all(p.requires_grad for p in plain.parameters()), "the network itself is untouched"
    moved(chain).train()(x).sum().backward()
    assert all(p.grad is None for name, p in chain.named_parameters() if name not in learning)


def test_a_group_folds_into_the_weights() -> None:
    chain, x = moved(adapted(network(), SPEC, Key.of(0))).eval(), torch.randn(3, 1, 8, 8)
    plain = folded(chain).eval()
    assert not any(isinstance(leaf, Adapted) for leaf in plain.leaves)
    torch.testing.assert_close(plain(x), chain(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain(x), network()(x))
    with pytest.raises(RequestError, match="cannot be folded"):
        folded(adapted(network(), {**SPEC, "top_k": 2}, Key.of(0)))


@pytest.mark.parametrize("targets", [["q"], ["v", "o"], ["k", "q"]])
def test_each_target_is_its_third_of_the_projection(targets: list[str]) -> None:
    chain, x = moved(adapted(network(), {**SPEC, "targets": targets}, Key.of(0))).eval(), torch.randn(3, 1, 8, 8)
    given = network().state_dict()
    changed = {
        (name.rpartition(".")[0][-4:], i)
        for name, t in folded(chain).state_dict().items()
        for i in range(len(t) // 8 if t.ndim == 2 and "attn" in name else 0)
        if not torch.equal(t[8 * i : 8 * i + 8], given[name][8 * i : 8 * i + 8])
    }
    place = {"q": (".qkv", 0), "k": (".qkv", 1), "v": (".qkv", 2), "o": ("proj", 0)}
    assert changed == {place[t] for t in targets}
    torch.testing.assert_close(folded(chain).eval()(x), chain(x), atol=1e-5, rtol=1e-4)


@FEW
@given(st.integers(0, 10), st.integers(1, 4))
def test_one_adapter_of_all_the_weight_is_that_adapter(seed: int, top_k: int) -> None:
    torch.manual_seed(seed)
    part, x = LowRank(6, 5, 4, 2, 1.0, top_k).eval(), torch.randn(7, 6)
    with torch.no_grad():
        part.b.normal_()
    weights = part.weigh(x)
    assert weights is not None
    torch.testing.assert_close(weights.mix.sum(-1), torch.ones(7))
    assert ((weights.mix > 0).sum(-1) == top_k).all()
    expected = sum(weights.mix[:, e, None] * (x @ part.a[e].T @ part.b[e].T) for e in range(4))
    torch.testing.assert_close(part(x, weights), expected, atol=1e-5, rtol=1e-4)


def test_hard_soft_takes_the_top_with_the_gradient_of_all() -> None:
    torch.manual_seed(0)
    part, x = LowRank(6, 5, 4, 2, 1.0, 2, hard_soft=True).train(), torch.randn(7, 6)
    weights = part.weigh(x)
    assert weights is not None
    assert ((weights.mix.detach() > 1e-7).sum(-1) == 2).all()
    direction = torch.randn(7, 4)
    assert part.router is not None
    (hard,) = torch.autograd.grad((weights.mix * direction).sum(), part.router.weight, retain_graph=True)
    (soft,) = torch.autograd.grad((weights.probs * direction).sum(), part.router.weight)
    torch.testing.assert_close(hard, soft)


def test_the_specialisation_loss_rewards_decisions_and_even_load() -> None:
    def loss(probs: torch.Tensor, balance: float, entropy: float) -> float:
        return float(specialisation(Weights(probs, probs, probs.argmax(-1, keepdim=True)), balance, entropy))

    even, sure, one = torch.full((4, 4), 0.25), torch.eye(4), torch.eye(4)[torch.zeros(4, dtype=torch.long)]
    assert loss(sure, 0, 1) == pytest.approx(0)
    assert loss(even, 0, 1) > loss(sure, 0, 1)
    assert loss(even, 0, -1) < loss(sure, 0, -1), "as printed"
    assert loss(one, 1, 0) == pytest.approx(1)
    assert loss(sure, 1, 0) == pytest.approx(0.25)


@FEW
@given(st.integers(0, 10), st.sampled_from(["l1", "fro2"]), st.floats(0.5, 3))
def test_pegos_loss_is_that_of_the_whole_matrices(seed: int, norm: Any, factor: float) -> None:
    torch.manual_seed(seed)
    weight, a, b = torch.randn(6, 5), torch.randn(3, 2, 5), torch.randn(3, 6, 2)
    deltas = [b[i] @ a[i] for i in range(3)]
    size = torch.abs if norm == "l1" else torch.square
    preserve = sum(size(weight @ d.T).sum() for d in deltas)
    diversify = sum(size(deltas[i] @ deltas[j].T).sum() for i in range(3) for j in range(i))
    torch.testing.assert_close(orthogonality(weight, a, b, norm), preserve + diversify, atol=1e-3, rtol=1e-4)
    assert float(orthogonality(weight, a[:1], torch.zeros_like(b[:1]), norm)) == 0
    order = [2, 0, 1]
    torch.testing.assert_close(orthogonality(weight, a[order], b[order], norm), orthogonality(weight, a, b, norm))
    power = 1 if norm == "l1" else 2
    one = orthogonality(weight, a[:1], b[:1], norm)
    torch.testing.assert_close(orthogonality(weight, a[:1], factor * b[:1], norm), factor**power * one)


def test_updates_outside_the_weights_rows_are_free() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    weight = torch.randn(4, 3) @ basis[:3]
    a, b = basis[3:5][None], torch.randn(1, 4, 2)
    assert float(orthogonality(weight, a, b)) < 1e-4


def test_losses_and_loads_belong_to_the_pass() -> None:
    spec = {**SPEC, "top_k": 2, "balance": 0.1, "entropy": 0.1, "orthogonal": 0.01}
    chain, ctx = moved(adapted(network(), spec, Key.of(0))).train(), Pass()
    chain(torch.randn(3, 1, 8, 8), ctx)
    assert set(ctx.losses) == {
        f"{i}.{t}" for i in (1, 2) for t in ("q.router", "k.router", "v.router", "o.router", "orthogonal")
    }
    assert float(ctx.stats["1.q.load"].sum()) == pytest.approx(1)
    assert not any(layer._forward_hooks for layer in chain.modules()), "nothing of a pass is left"


def test_adapters_trained_apart_become_experts() -> None:
    parts = [moved(adapted(network(), {**SPEC, "experts": n}, Key.of(n))) for n in (1, 2)]
    chain = adapted(network(), {**SPEC, "experts": 3, "top_k": 2}, Key.of(0))
    load_adapters(chain, [stacks_of(part.state_dict()) for part in parts])
    frozen = {name for name, p in chain.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if name.endswith((".a", ".b"))}
    for name, tensor in chain.state_dict().items():
        if name.endswith((".a", ".b")):
            assert torch.equal(tensor, torch.cat([part.state_dict()[name] for part in parts]))
    with pytest.raises(RequestError, match="do not fit"):
        load_adapters(chain, [stacks_of(parts[0].state_dict())])
    few = adapted(network(), {**SPEC, "targets": ["q"]}, Key.of(0))
    with pytest.raises(RequestError, match="on one side only"):
        load_adapters(few, [stacks_of(parts[0].state_dict())])


def test_an_adapted_network_is_stored() -> None:
    chain, x = moved(adapted(network(), {**SPEC, "top_k": 2}, Key.of(0))).eval(), torch.randn(3, 1, 8, 8)
    again = rebuild(describe(chain)).eval()
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(x), chain(x))


def test_what_has_no_attention_is_refused() -> None:
    with pytest.raises(RequestError, match="the network has none"):
        adapted(Chain([Head(8, 5)]), SPEC, Key.of(0))
    with pytest.raises(RequestError, match="more adapters than there are"):
        LowRank(4, 4, 2, 1, 1.0, 3)
