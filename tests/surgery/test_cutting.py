"""Cutting and assembling are inverse, share storage and never change a key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, Port, unique_parameters
from modnet.errors import RequestError
from modnet.models.vit import vit
from modnet.recipe.models import ViT
from modnet.surgery import assemble, cut, hybrid, without_stitches

IMAGE = Port.of("image", channels=1, size=8)


def small(depths: tuple[int, ...], width: int = 8, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    return vit(ViT(width=width, heads=2, depths=depths, patch=4), IMAGE, 3).eval()


depths = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(depths)
def test_cut_and_assemble_are_inverse_bit_for_bit(parts: list[int]) -> None:
    whole = small((sum(parts),))
    divided = cut(whole, parts)
    assert divided.depths == tuple(parts)
    joined = assemble(divided)
    assert joined.leaves == whole.leaves
    assert joined.bounds == divided.bounds
    assert list(divided.state_dict()) == list(whole.state_dict())
    x = torch.randn(2, 1, 8, 8)
    step = x
    for module in divided:
        step = module(step)
    assert torch.equal(step, whole(x))


@settings(max_examples=25, deadline=None)
@given(depths)
def test_modules_count_every_parameter_once(parts: list[int]) -> None:
    whole = small((sum(parts),))
    counts = [sum(p.numel() for p in unique_parameters(m)) for m in cut(whole, parts)]
    assert sum(counts) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("parts", [[], [2], [4, 0], [5], [1, 1, 1]])
def test_depths_that_do_not_add_up_are_refused(parts: list[int]) -> None:
    with pytest.raises(RequestError, match="4"):
        cut(small((4,)), parts)


def test_a_hybrid_of_the_hosts_own_module_is_the_host() -> None:
    host = small((1, 1, 1))
    x = torch.randn(2, 1, 8, 8)
    for i in range(3):
        assert torch.equal(hybrid(host, host[i].cloned(), i)(x), host(x))


@pytest.mark.parametrize("i", [0, 1, 2])
def test_one_step_of_a_hybrid_changes_its_module_alone(i: int) -> None:
    host, target = small((1, 1, 1)), small((2, 2, 2), seed=1)
    before = {name: t.clone() for name, t in host.state_dict().items()}
    started = {name: t.clone() for name, t in target.state_dict().items()}
    mixed = hybrid(host, target[i], i).train()
    optimizer = torch.optim.SGD([p for p in mixed.parameters() if p.requires_grad], lr=0.1)
    mixed(torch.randn(2, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in target[i].parameters()}
    names = {id(p): name for name, p in target.named_parameters()}
    moved = {name for name, t in target.state_dict().items() if not torch.equal(t, started[name])}
    assert moved <= {names[id(p)] for p in target[i].parameters()}
    assert len(moved) > 10
    assert all(torch.equal(t, before[name]) for name, t in host.state_dict().items())
    assert all(p.grad is None for p in host.parameters())
    assert all(p.grad is not None for p in target[i].parameters())


def test_without_stitches_of_a_plain_chain_is_the_chain() -> None:
    whole = small((1, 2))
    assert without_stitches(whole).leaves == whole.leaves
    assert without_stitches(whole).bounds == whole.bounds
