"""Stitches, their least-squares solution, and folding two into one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.stitches import (
    STITCHES,
    IdentityStitch,
    LinearStitch,
    NormLinearStitch,
    fold,
    folds,
    least_squares,
    stitch_between,
)
from modnet.randomness import Key


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    rest = torch.Size(shape[1:]).numel()
    return Key.of(seed).normal(torch.arange(shape[0]), rest).view(shape).double()


def test_stitches_map_as_their_names_say() -> None:
    x = normal(2, 5, 6).float()
    linear, normed = LinearStitch(6, 4), NormLinearStitch(6, 4)
    assert torch.equal(linear(x, Pass()), x @ linear.fc.weight.T + linear.fc.bias)
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(normed(x, Pass()), centred @ normed.fc.weight.T, atol=1e-5, rtol=1e-5)
    assert IdentityStitch(6, 6)(x, Pass()) is x
    with pytest.raises(RequestError, match="equal widths, not 6 and 4"):
        IdentityStitch(6, 4)


def test_stitches_have_the_published_parameter_names() -> None:
    names = dict(NormLinearStitch(6, 4).named_parameters())
    assert set(names) == {"ln.weight", "ln.bias", "fc.weight", "fc.bias"}
    assert set(dict(LinearStitch(6, 4).named_parameters())) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("kind", STITCHES)
def test_a_stitch_joins_two_ports_and_can_be_written_as_data(kind: str) -> None:
    takes = Port.of("tokens", width=6, prefix=1, grid=(2, 2))
    gives = Port.of("tokens", width=6 if kind == "identity" else 4, prefix=1)
    stitch = stitch_between(kind, takes, gives)
    assert stitch.role == "stitch"
    assert stitch.takes == takes
    assert stitch.gives == Port.of("tokens", width=gives["width"], prefix=1, grid=(2, 2))
    (again,) = rebuild(describe(Chain([stitch]))).leaves
    assert (type(again), again.takes, again.gives) == (type(stitch), stitch.takes, stitch.gives)
    assert stitch.matrices() == {}


def test_ports_that_differ_in_more_than_width_are_not_stitched() -> None:
    tokens = Port.of("tokens", width=6, prefix=1, grid=(2, 2))
    with pytest.raises(RequestError, match="differ in grid"):
        stitch_between("linear", tokens, Port.of("tokens", width=6, prefix=1, grid=(4, 4)))
    with pytest.raises(RequestError, match="differ in prefix"):
        stitch_between("linear", tokens, Port.of("tokens", width=6, prefix=0, grid=(2, 2)))
    with pytest.raises(RequestError, match="tokens to tokens"):
        stitch_between("linear", Port.of("image", channels=1, size=8), tokens)


def test_a_fresh_stitch_keeps_the_scale_of_normed_tokens() -> None:
    x = normal(64, 16, 100).float()
    with Key.of(0).forked():
        out = LinearStitch(100, 300)(x, Pass())
    assert out.std().item() == pytest.approx(1, abs=0.1)


# ---- least squares -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 100), st.sampled_from(["lstsq", "pinv"]))
def test_an_affine_map_is_found_again(given_width: int, out: int, seed: int, method: Any) -> None:
    x = normal(4, 10, given_width, seed=seed)
    weight, bias = normal(out, given_width, seed=seed + 1), normal(out, 1, seed=seed + 2)[:, 0]
    found = least_squares(x, x @ weight.T + bias, method)
    torch.testing.assert_close(found[0], weight, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found[1], bias, atol=1e-8, rtol=1e-8)


def test_both_methods_agree_and_no_other_map_is_closer() -> None:
    x, y = normal(50, 7), normal(50, 3, seed=1)
    weight, bias = least_squares(x, y)
    other_weight, other_bias = least_squares(x, y, "pinv")
    torch.testing.assert_close(weight, other_weight)
    torch.testing.assert_close(bias, other_bias)

    def error(w: torch.Tensor, b: torch.Tensor) -> float:
        return (x @ w.T + b - y).square().sum().item()

    best = error(weight, bias)
    for seed in range(10):
        nudge = 1e-3 * normal(3, 8, seed=seed)
        assert error(weight + nudge[:, :7], bias + nudge[:, 7]) > best


def test_rank_deficient_inputs_still_get_the_least_error() -> None:
    x = normal(40, 3).repeat(1, 2)  # every column twice
    y = x @ normal(2, 6, seed=5).T
    for method in ("lstsq", "pinv"):
        weight, bias = least_squares(x, y, method)
        torch.testing.assert_close(x @ weight.T + bias, y, atol=1e-8, rtol=1e-8)


def test_the_dtype_is_the_targets_and_rows_must_match() -> None:
    weight, bias = least_squares(normal(9, 3), normal(9, 2).float())
    assert weight.dtype == bias.dtype == torch.float32
    with pytest.raises(ValueError, match="9 rows cannot be mapped to 8"):
        least_squares(normal(9, 3), normal(8, 2))


# ---- folding -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.sampled_from(["linear", "ln-linear"]))
def test_a_folded_stitch_is_both_in_a_row(a: int, b: int, c: int, kind: str) -> None:
    first, second = STITCHES[kind](a, b).double(), LinearStitch(b, c).double()
    joined, x = fold(first, second), normal(2, 3, a)
    expected = second(first(x, Pass()), Pass())
    torch.testing.assert_close(joined(x, Pass()), expected, atol=1e-10, rtol=1e-10)
    assert type(joined) is STITCHES[kind]
    assert (joined.takes, joined.gives) == (first.takes, second.gives)


def test_identities_vanish_in_folding() -> None:
    x = normal(2, 3, 5).float()
    for kind in ("linear", "ln-linear"):
        stitch = STITCHES[kind](5, 5)
        for pair in ((IdentityStitch(5, 5), stitch), (stitch, IdentityStitch(5, 5))):
            joined = fold(*pair)
            assert torch.equal(joined(x, Pass()), stitch(x, Pass()))
            assert next(joined.parameters()) is not next(stitch.parameters())
    assert type(fold(IdentityStitch(5, 5), IdentityStitch(5, 5))) is IdentityStitch


def test_only_a_norm_between_forbids_folding() -> None:
    for first, second in itertools.product(STITCHES, STITCHES):
        pair = STITCHES[first](4, 4), STITCHES[second](4, 4)
        allowed = second != "ln-linear" or first == "identity"
        assert folds(*pair) == allowed
        if not allowed:
            with pytest.raises(ValueError, match="NormLinearStitch do not fold"):
                fold(*pair)


def test_folding_keeps_the_learned_norm() -> None:
    first, second = NormLinearStitch(4, 3), LinearStitch(3, 5)
    with torch.no_grad():
        first.ln.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        first.ln.bias.fill_(0.5)
        first.fc.bias.fill_(0.25)
    x = normal(2, 3, 4).float()
    torch.testing.assert_close(fold(first, second)(x, Pass()), second(first(x, Pass()), Pass()))
