"""What the whole project stands on: slicing, joining, freezing, naming, writing as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modnet.chain import (
    Chain,
    Module,
    Pass,
    Plain,
    Port,
    PortMismatch,
    describe,
    parameter_count,
    rebuild,
    unique_parameters,
)
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT

Tiny = Callable[..., Chain]
DEPTHS = st.lists(st.integers(1, 2), min_size=1, max_size=4).map(tuple)
FEW = settings(max_examples=15, deadline=None)


def build(depths: tuple[int, ...], seed: int = 0, width: int = 8) -> Chain:
    params = ViT(width=width, heads=2, depths=depths, patch=4)
    with Key.of(seed).forked():
        return vit(params, Port.of("image", channels=1, size=8), 3).eval()


def images(count: int = 2, seed: int = 0) -> Tensor:
    return Key.of(seed, "x").normal(torch.arange(count), 64).view(count, 1, 8, 8)


class Scale(Module):
    """A leaf for tests: features times a parameter."""

    def __init__(self, width: int, start: float = 1.0, pair: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.takes = self.gives = Port.of("features", width=width)
        self.factor = nn.Parameter(torch.full((width,), start))
        self.register_buffer("seen", torch.zeros(1))
        self.pair = pair

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        ctx.stats["scaled"] = torch.tensor(ctx.leaf)
        return x * self.factor


# ---- slicing and joining ---------------------------------------------------------------------------


@FEW
@given(DEPTHS, st.data())
def test_running_both_halves_is_running_the_whole_bit_for_bit(depths: tuple[int, ...], data: st.DataObject) -> None:
    chain, x = build(depths), images()
    at = data.draw(st.integers(0, len(chain)))
    with torch.no_grad():
        assert torch.equal(chain[at:](chain[:at](x)), chain(x))
        assert torch.equal((chain[:at] + chain[at:])(x), chain(x))


@FEW
@given(DEPTHS, st.data())
def test_joined_halves_have_the_same_keys_bounds_and_parameters(depths: tuple[int, ...], data: st.DataObject) -> None:
    chain = build(depths)
    at = data.draw(st.integers(0, len(chain)))
    joined = chain[:at] + chain[at:]
    assert joined.bounds == chain.bounds
    assert joined.depths == chain.depths == depths
    assert list(joined.state_dict()) == list(chain.state_dict())
    assert all(a is b for a, b in zip(joined.parameters(), chain.parameters(), strict=True))


@FEW
@given(DEPTHS)
def test_modules_one_after_another_are_the_flat_network(depths: tuple[int, ...]) -> None:
    chain, x = build(depths), images()
    with torch.no_grad():
        step = x
        for module in chain:
            step = module(step)
        assert torch.equal(step, chain(x))
        assert torch.equal(chain.flat(x), chain(x))
    assert list(chain.flat.state_dict()) == list(chain.state_dict())
    assert len(chain.flat) == len(chain.leaves) == sum(depths) + 2


def test_one_module_and_one_module_a_block_are_both_legal() -> None:
    x = images()
    whole, apart = build((3,)), build((1, 1, 1))
    apart.load_state_dict(whole.state_dict())
    assert torch.equal(whole(x), apart(x))
    assert sum(parameter_count(module) for module in apart) == parameter_count(whole)


def test_the_empty_chain_is_legal_and_neutral() -> None:
    chain, empty, x = build((1, 2)), Chain(), images()
    assert not empty
    assert len(empty) == 0
    assert (empty.takes, empty.gives) == (None, None)
    assert empty(x) is x
    for joined in (empty + chain, chain + empty, chain[1:1] + chain):
        assert joined.bounds == chain.bounds
        assert joined.leaves == chain.leaves
    assert (empty + empty).bounds == (0,)
    assert not empty.frozen()
    assert empty.state_dict() == {}


def test_indices_count_from_both_ends_and_are_checked() -> None:
    chain = build((1, 1, 1))
    assert chain[-1].leaves == chain[2].leaves
    assert chain[-2:].leaves == chain[1:].leaves
    assert not chain[2:1]
    with pytest.raises(IndexError):
        chain[3]
    with pytest.raises(ValueError, match="without gaps"):
        chain[::2]


def test_bounds_must_divide_the_leaves() -> None:
    leaves = build((1, 1)).leaves
    for bounds in [(0, 2), (1, 4), (0, 3, 2, 4)]:
        with pytest.raises(ValueError, match="bounds"):
            Chain(leaves, bounds)


def test_a_mismatch_names_both_leaves_both_ports_and_the_fix() -> None:
    narrow, wide = build((1, 1), width=8), build((1, 1), width=12)
    with pytest.raises(PortMismatch) as caught:
        narrow[:1] + wide[1:]
    text = str(caught.value)
    assert text.count("Block") == 2
    assert "tokens(grid=(2, 2), prefix=1, width=8)" in text
    assert "tokens(grid=(2, 2), prefix=1, width=12)" in text
    assert "put a stitch between them" in text


def test_ports_compare_what_both_declare() -> None:
    tokens = Port.of("tokens", width=8, prefix=1, grid=[2, 2])
    assert tokens == Port.of("tokens", grid=(2, 2), prefix=1, width=8)
    assert hash(tokens) == hash(Port.of("tokens", grid=(2, 2), prefix=1, width=8))
    assert tokens.fits(None)
    assert tokens.fits(Port.of("tokens", width=8))
    assert Port.of("tokens", width=None).fits(tokens)
    assert not tokens.fits(Port.of("tokens", width=9))
    assert not tokens.fits(Port.of("features", width=8))
    assert tokens["depth"] is None


# ---- freezing and cloning --------------------------------------------------------------------------


def test_a_frozen_twin_shares_storage_and_leaves_the_original_alone() -> None:
    chain = build((1, 1)).train()
    twin = chain.frozen()
    for own, other in zip(chain.parameters(), twin.parameters(), strict=True):
        assert own.data_ptr() == other.data_ptr()
        assert own.requires_grad
        assert not other.requires_grad
    assert all(module.training for module in chain.modules())
    with torch.no_grad():
        next(chain.parameters()).add_(1)
    assert torch.equal(next(chain.parameters()), next(twin.parameters()))
    assert list(twin.state_dict()) == list(chain.state_dict())


def test_a_frozen_twin_stays_in_eval_whatever_it_is_joined_to() -> None:
    chain = build((1, 1, 1))
    mixed = (chain[:1].frozen() + chain[1] + chain[2:].frozen()).train()
    modes = [{m.training for m in leaf.modules()} for leaf in mixed.leaves]
    assert modes == [{False}, {False}, {True}, {False}, {False}]
    mixed.eval().train()
    assert modes == [{m.training for m in leaf.modules()} for leaf in mixed.leaves]


def test_gradients_pass_through_frozen_parts_and_stop_at_them() -> None:
    meta, target = build((1, 1, 1)), build((2, 2, 2), seed=1)
    mixed = meta[:1].frozen() + target[1] + meta[2:].frozen()
    mixed(images()).sum().backward()
    with_gradient = {id(p) for p in mixed.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in target[1].parameters()}
    assert all(p.grad is None for p in meta.parameters())


def test_buffers_of_a_frozen_twin_are_the_same() -> None:
    chain = Chain([Scale(2)])
    assert chain.frozen().leaves[0].seen is chain.leaves[0].seen


def test_a_clone_has_its_own_storage() -> None:
    chain, x = build((1, 1)), images()
    copy = chain.cloned()
    assert torch.equal(copy(x), chain(x))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert any(p.abs().sum() > 0 for p in chain.parameters())
    assert copy.bounds == chain.bounds
    frozen = chain.frozen().cloned().train()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(leaf.training for leaf in frozen.leaves)


# ---- names, data, files ----------------------------------------------------------------------------


@FEW
@given(DEPTHS)
def test_a_chain_survives_being_written_as_data(depths: tuple[int, ...]) -> None:
    chain, x = build(depths), images()
    written = json.loads(json.dumps(describe(chain)))
    again = rebuild(written)
    missing = again.load_state_dict(chain.state_dict())
    assert not missing.missing_keys
    assert torch.equal(again.eval()(x), chain(x))
    assert (again.bounds, again.takes, again.gives) == (chain.bounds, chain.takes, chain.gives)
    assert json.loads(json.dumps(describe(again))) == written


def test_arguments_given_by_place_or_by_name_are_kept() -> None:
    leaf = rebuild(describe(Chain([Scale(3, pair=(4, 5))]))).leaves[0]
    assert isinstance(leaf, Scale)
    assert leaf.pair == (4, 5)
    assert leaf.factor.shape == (3,)


def test_a_leaf_that_stands_twice_is_saved_once_and_stays_one() -> None:
    leaf = Scale(2, start=3.0)
    chain = Chain([leaf, Scale(2), leaf])
    assert list(chain.state_dict()) == ["0.factor", "0.seen", "1.factor", "1.seen"]
    assert parameter_count(chain) == 4
    again = rebuild(json.loads(json.dumps(describe(chain))))
    assert again.leaves[0] is again.leaves[2]
    again.load_state_dict(chain.state_dict())
    assert again(torch.ones(1, 2)).tolist() == [[9.0, 9.0]]
    assert len(unique_parameters(chain, chain[:1])) == 2


def test_loading_names_what_is_missing_unexpected_or_misshapen() -> None:
    chain = build((1, 1))
    state = chain.state_dict()
    state["9.more"] = state.pop("1.norm1.weight")
    with pytest.raises(RuntimeError, match=r"1\.norm1\.weight"):
        chain.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"9\.more"):
        chain.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        chain.load_state_dict({**chain.state_dict(), "0.cls_token": torch.zeros(1, 1, 5)})


def test_a_chain_inside_another_module_is_saved_and_loaded_like_any_part() -> None:
    parent = nn.ModuleDict({"a": build((1, 1)), "b": build((1,), seed=1)})
    other = nn.ModuleDict({"a": build((1, 1), seed=5), "b": build((1,), seed=6)})
    other.load_state_dict(parent.state_dict())
    assert torch.equal(other["a"](images()), parent["a"](images()))
    assert all(name.startswith(("a.", "b.")) for name in parent.state_dict())


def test_the_state_can_be_asked_for_with_its_graph() -> None:
    chain = build((1,))
    kept = chain.state_dict(keep_vars=True)
    assert all(isinstance(tensor, nn.Parameter) for tensor in kept.values())
    assert not any(tensor.requires_grad for tensor in chain.state_dict().values())


def test_an_ordinary_module_fits_anything_but_cannot_be_written() -> None:
    chain = Chain([nn.Linear(3, 2), nn.ReLU()])
    assert all(isinstance(leaf, Plain) for leaf in chain.leaves)
    assert chain(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(TypeError, match="leaf 0"):
        describe(chain)


@pytest.mark.parametrize("name", ["os:system", "modnet.chain:describe", "modnet.chain:Nothing", "x"])
def test_only_leaves_are_rebuilt(name: str) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        rebuild({"leaves": [{"leaf": name}], "bounds": [0, 1]})


# ---- passes ----------------------------------------------------------------------------------------


def test_a_pass_collects_the_activations_asked_for_and_what_leaves_report() -> None:
    chain = Chain([Scale(2, 2.0), Scale(2, 3.0)])
    ctx = Pass(wanted=frozenset({0}))
    chain(torch.ones(1, 2), ctx)
    assert ctx.taps.keys() == {0}
    assert ctx.taps[0].tolist() == [[2.0, 2.0]]
    assert int(ctx.stats["scaled"]) == 1


def test_an_evaluation_pass_draws_nothing() -> None:
    assert not Pass().stochastic
    with pytest.raises(ValueError, match="give the Pass a key"):
        Pass().rng("noise")


def test_a_pass_of_its_own_has_the_same_samples_and_another_key() -> None:
    ctx = Pass(Key.of(1), torch.arange(3), {"more": 1})
    inner = ctx.enter("module", 2)
    assert inner.ids is ctx.ids
    assert inner.batch is ctx.batch
    assert inner.key == Key.of(1).fold("module", 2)
    assert inner.losses is not ctx.losses
    assert Pass().enter("module").key is None


def test_shared_parts_are_offered_to_every_leaf_and_saved_once() -> None:
    class Reader(Module):
        def forward(self, x: Tensor, ctx: Pass) -> Tensor:
            assert isinstance(ctx.shared, Scale)
            return x * ctx.shared.factor

    shared = Scale(2, 5.0)
    chain = Chain([Reader(), Reader()], [0, 1, 2], shared=shared)
    assert len(chain.leaves) == 2
    assert chain(torch.ones(1, 2)).tolist() == [[25.0, 25.0]]
    assert list(chain.state_dict()) == ["shared.factor", "shared.seen"]
    assert (chain[:1] + chain[1:]).shared_part is shared
    with pytest.raises(ValueError, match="shared parts"):
        chain + Chain([Reader()], shared=Scale(2))
    again = rebuild(describe(Chain([Scale(2)], shared=shared)))
    assert isinstance(again.shared_part, Scale)
    assert again.shared_part.arguments == shared.arguments
    with pytest.raises(TypeError, match=r"shared part \(Dropout\)"):
        describe(Chain([Reader()], shared=nn.Dropout()))


@pytest.mark.parametrize("shared", [Scale(2), nn.Dropout(), nn.BatchNorm1d(2)])
def test_a_frozen_shared_part_stays_in_eval_and_is_one_with_its_twins(shared: nn.Module) -> None:
    chain = Chain([Scale(2), Scale(2), Scale(2)], [0, 1, 2, 3], shared=shared)
    if not list(shared.parameters()):
        with pytest.raises(ValueError, match="shared parts"):
            chain[:1].frozen() + chain[2:].frozen()
        twin = chain.frozen().train().shared_part
        assert twin is not None
        assert not twin.training
        return
    mixed = (chain[:1].frozen() + Chain([Scale(2)]) + chain[2:].frozen()).train()
    assert mixed.shared_part is not None
    assert [part.training for part in (*mixed.leaves, mixed.shared_part)] == [False, True, False, False]
    assert all(not p.requires_grad for p in mixed.shared_part.parameters())
    assert shared.training
    with pytest.raises(ValueError, match="frozen twin with its original"):
        chain[:1].frozen() + chain[1:]


def test_a_chain_prints_its_leaves_by_module(tiny: Tiny) -> None:
    text = repr(tiny(depths=(1, 2)))
    assert text == "Chain(PatchStem Block | Block Block Head)"
    settings_of: Any = describe(tiny())["bounds"]
    assert settings_of == [0, 2, 3, 5]
