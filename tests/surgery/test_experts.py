"""Experts counted, removed, added and held still."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.data.splits import Split
from modnet.engine.batch import Batch
from modnet.errors import RequestError
from modnet.methods.experts import GrowObjective
from modnet.methods.supervised import TRACK
from modnet.models.moduleformer import moduleformer
from modnet.models.vit import vit
from modnet.models.vmoe import vmoe
from modnet.randomness import Key
from modnet.recipe.models import ViT, VMoE
from modnet.recipe.moduleformer import ModuleFormer
from modnet.registry import ROUTERS
from modnet.surgery.experts import chosen, grown, hold_old, mixtures, pruned, released, reweighted, usage

FEW = settings(max_examples=15, deadline=None)

TEXT, IMAGE = Port.of("ids", vocab=256, length=12), Port.of("image", channels=1, size=8)


class Raw:
    """Bytes as ids."""

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images.long()


def language(**changes: Any) -> Chain:
    torch.manual_seed(0)
    sizes = {"width": 8, "attention_hidden": 4, "attention_experts": 4, "hidden": 6, "experts": 4}
    return moduleformer(ModuleFormer(**{**sizes, **changes}), TEXT, 256).eval()


def vision(**changes: Any) -> Chain:
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "depths": (1, 1), "patch": 4, "experts": 4}
    return vmoe(VMoE(**{**sizes, **changes}), IMAGE, 5).eval()


def ids(rows: int = 4) -> torch.Tensor:
    return torch.randint(256, (rows, 12), generator=torch.Generator().manual_seed(0))


def test_usage_is_a_share() -> None:
    chain = language()
    x = ids(6)
    with torch.no_grad():
        found = usage(chain, Split.of(x.to(torch.uint8), x), Raw(), batch=4)
        whole = usage(chain, Split.of(x.to(torch.uint8), x), Raw(), batch=6)
    assert found.keys() == {(1, "attn"), (1, "moe"), (2, "attn"), (2, "moe")}
    for place, share in found.items():
        assert float(share.sum()) == pytest.approx(1)
        torch.testing.assert_close(share, whole[place])


@FEW
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.01, 1))
def test_the_most_used_are_kept(shares: list[float], keep: float) -> None:
    share = torch.tensor(shares)
    kept = chosen(share, 2, keep, None)
    assert kept == sorted(kept)
    assert len(kept) >= 2
    out = [e for e in range(len(shares)) if e not in kept]
    assert all(share[a] >= share[b] for a in kept for b in out)
    assert chosen(share, 2, 1.0, None) == list(range(len(shares)))
    assert set(chosen(share, 1, None, 0.5)) >= set((share >= 0.5).nonzero()[:, 0].tolist())


def test_pruning_what_is_never_chosen_changes_nothing() -> None:
    chain, x = language(), ids()
    with torch.no_grad():
        shares = usage(chain, Split.of(x.to(torch.uint8), x), Raw())
        for (position, name), part in mixtures(chain).items():
            weight = part.gate.gate.weight
            rare = int(shares[position, name].argmin())
            weight[rare] *= 0  # a logit of 0 for all
            part.gate.get_parameter("inner.bias").add_(1)
            weight[[e for e in range(4) if e != rare]] = weight[[e for e in range(4) if e != rare]].abs() + 0.1
    with torch.no_grad():
        shares = usage(chain, Split.of(x.to(torch.uint8), x), Raw())
    kept = {place: [e for e in range(4) if share[e] > 0] for place, share in shares.items()}
    assert all(len(experts) < 4 for experts in kept.values())
    exact, shifted = pruned(chain, kept).eval(), pruned(chain, kept, rows="drop").eval()
    torch.testing.assert_close(exact(x), chain(x))
    assert not torch.allclose(shifted(x), chain(x))
    twice = pruned(exact, {place: list(range(part.count)) for place, part in mixtures(exact).items()}).eval()
    torch.testing.assert_close(twice(x), chain(x))
    again = rebuild(describe(exact)).eval()
    again.load_state_dict(exact.state_dict())
    assert torch.equal(again(x), exact(x))


def test_experts_can_stand_in_any_order() -> None:
    chain, x = language(), ids()
    turned = {place: [2, 0, 3, 1] for place in mixtures(chain)}
    torch.testing.assert_close(pruned(chain, turned).eval()(x), chain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("router", ROUTERS.names())
def test_every_router_keeps_its_rows(router: str) -> None:
    chain, x = vision(router={"name": router}), torch.randn(4, 1, 8, 8)
    places = mixtures(chain)
    turned = pruned(chain, {place: [2, 0, 3, 1] for place in places}, rows="drop").eval()
    torch.testing.assert_close(turned(x), chain(x), atol=1e-5, rtol=1e-5)
    larger = grown(chain, 2, Key.of(0))
    rows = hold_old(larger, 2)
    objective = GrowObjective(larger.train(), 0.0, rows, 0.1)
    objective(Batch(x, torch.arange(4), torch.arange(4)), Pass())[TRACK].backward()
    back = pruned(released(larger), {place: list(range(4)) for place in places}, rows="drop").eval()
    assert torch.equal(back(x), chain(x))


def test_rows_of_pruned_experts_take_no_part_in_noise_priority_and_losses() -> None:
    router = {"name": "perceptron", "noise": 1.0, "load": 0.1, "switch": 0.1, "importance": 0.1}
    chain, x = vision(router=router, top_k=2), torch.randn(4, 1, 8, 8)
    small = pruned(chain, {place: [0, 2, 3] for place in mixtures(chain)}).train()
    small(x, Pass(Key.of(0), torch.arange(4)))
    gate = next(iter(mixtures(small).values())).gate
    choice = gate(torch.randn(8, 8), torch.randn(8, 3))
    assert choice.logits.shape == (8, 4)
    assert torch.equal(choice.noisy[:, 3], choice.logits[:, 3])
    louder = replace(choice, logits=choice.logits + torch.tensor([0.0, 0.0, 0.0, 9.0]))
    quiet, loud = gate.loss(choice), gate.loss(louder)
    assert quiet is not None
    assert loud is not None
    torch.testing.assert_close(loud, quiet)


@pytest.mark.parametrize("make", [language, vision])
def test_new_experts_learn_alone_and_can_be_taken_away_again(make: Any) -> None:
    chain = make()
    x = ids() if make is language else torch.randn(4, 1, 8, 8)
    larger = grown(chain, 2, Key.of(0))
    rows = hold_old(larger, 2)
    learning = {name for name, p in larger.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.endswith("original") for name in learning)
    assert len(rows) == sum(1 + (part.gate.gate.bias is not None) for part in mixtures(chain).values())
    larger.train()(x).square().sum().backward()
    with torch.no_grad():
        for p in larger.parameters():
            if p.requires_grad:
                assert p.grad is not None
                p.add_(torch.randn_like(p))
    plain = released(larger).eval()
    assert all(part.count == 6 for part in mixtures(plain).values())
    assert all(p.requires_grad for p in plain.parameters())
    again = rebuild(describe(plain)).eval()
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again(x), plain(x))
    old = pruned(plain, {place: list(range(4)) for place in mixtures(plain)}, rows="drop").eval()
    state = chain.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in old.state_dict().items())


def test_a_pruned_network_grows_in_front_of_its_silent_rows() -> None:
    chain, x = language(), ids()
    small = pruned(chain, {place: [0, 2] for place in mixtures(chain)}).eval()
    larger = grown(small, 1, Key.of(0)).eval()
    with torch.no_grad():
        for place, part in mixtures(larger).items():
            old = mixtures(small)[place].gate.gate.weight
            assert torch.equal(part.gate.gate.weight[[0, 1, 3, 4]], old)
    back = pruned(larger, {place: [0, 1] for place in mixtures(larger)}, rows="drop").eval()
    torch.testing.assert_close(back(x), small(x))


def test_what_a_router_cannot_do_is_said() -> None:
    chain = vision()
    with pytest.raises(RequestError, match="prune with rows: drop"):
        pruned(chain, {place: [0, 1] for place in mixtures(chain)})
    with pytest.raises(RequestError, match="has no silence"):
        reweighted(chain, silence=0.1)
    with pytest.raises(RequestError, match="has no experts"):
        mixtures(vit(ViT(width=8, heads=2, depths=(1,), patch=4), IMAGE, 5))


def test_other_loss_weights_change_no_output() -> None:
    chain, x = language(), ids()
    other = reweighted(chain, concentration=0.5, mutual_information=0.0).eval()
    assert torch.equal(other(x), chain(x))
    assert all(part.params.concentration == 0.5 for part in mixtures(other).values())
