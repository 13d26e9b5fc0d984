"""Adapters: images resized, recoloured and renormalised; features laid out on other grids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.evaluation.cost import cost
from modnet.layers.adapters import InputAdapter, MapsToTokens, Resample, TokensToMaps, see
from modnet.randomness import Key

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.286,), (0.353,))
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def pixels(count: int, channels: int, size: int) -> torch.Tensor:
    return Key.of(0).uniform(torch.arange(count), channels * size * size).view(count, channels, size, size)


def tokens(count: int, number: int, width: int) -> torch.Tensor:
    return Key.of(1).normal(torch.arange(count), number * width).view(count, number, width)


def normalised(x: torch.Tensor, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in moments)
    return (x - mean) / std


# ---- images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [(None, None, None, None), (*IMAGENET, *IMAGENET), (*GREY, None, None)])
def test_what_is_equal_on_both_sides_passes_untouched(moments: tuple) -> None:
    x = pixels(2, 3, 8)
    assert InputAdapter(3, 8, 3, 8, *moments)(x, Pass()) is x


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 7])
def test_pixels_are_what_is_resized_and_repeated(filter: str, size: int) -> None:
    x = pixels(2, 1, 14)
    adapter = InputAdapter(1, 14, 3, size, *GREY, *IMAGENET, filter=filter)  # type: ignore[arg-type]
    resized = F.interpolate(x, size=(size, size), mode=filter, align_corners=False, antialias=True)
    expected = normalised(resized.expand(-1, 3, -1, -1), IMAGENET)
    torch.testing.assert_close(adapter(normalised(x, GREY), Pass()), expected, atol=1e-5, rtol=1e-5)


def test_several_channels_are_averaged_in_pixels() -> None:
    x = pixels(2, 3, 6)
    adapter = InputAdapter(3, 6, 1, 6, *IMAGENET, *GREY)
    expected = normalised(x.mean(1, keepdim=True), GREY)
    torch.testing.assert_close(adapter(normalised(x, IMAGENET), Pass()), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RequestError, match="cannot make 4 channels of 3"):
        InputAdapter(3, 6, 4, 6)


def test_statistics_of_the_data_are_told_later_and_written_with_the_chain() -> None:
    chain = Chain([InputAdapter(1, 8, 3, 16, gives_mean=IMAGENET[0], gives_std=IMAGENET[1])])
    x = pixels(2, 1, 8)
    raw = chain(x)
    assert see(chain, *GREY) is chain
    again = rebuild(describe(chain))
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(x), chain(x))
    assert torch.equal(chain.frozen()(x), chain(x))
    assert torch.equal(chain.cloned()(x), chain(x))
    assert not torch.equal(raw, chain(x)), "without statistics nothing is normalised"
    told_anew = see(chain.cloned(), (0.5,), (0.25,))
    assert not torch.equal(told_anew(x), chain(x))
    assert not chain.state_dict(), "statistics are no weights"


def test_an_adapter_is_laid_out_without_storage() -> None:
    with torch.device("meta"):
        chain = Chain([InputAdapter(1, 8, 3, 16, *GREY, *IMAGENET), Resampled()])
    assert chain(torch.zeros(1, 1, 8, 8, device="meta")).shape == (1, 5, 3)
    real = Chain([InputAdapter(1, 8, 3, 16, *GREY, *IMAGENET)])
    assert cost(real, Port.of("image", channels=1, size=8)).parameters == 0


class Resampled(Resample):
    """A resampling of pixels, for the test above."""

    def __init__(self) -> None:
        super().__init__(3, 0, (16, 16), 1, (2, 2))
        self.takes = Port.of("image", channels=3, size=16)

    def forward(self, x: torch.Tensor, ctx: Pass) -> torch.Tensor:
        return super().forward(x.flatten(2).transpose(1, 2), ctx)


# ---- features ----------------------------------------------------------------------------------------


def test_maps_and_tokens_are_turned_into_each_other() -> None:
    x = pixels(2, 5, 12)[:, :, :3, :4]
    there, back = MapsToTokens(5, (3, 4)), TokensToMaps(5, (3, 4))
    assert torch.equal(there(x, Pass())[:, 6], x[:, :, 1, 2])
    assert torch.equal(back(there(x, Pass()), Pass()), x)
    assert there.gives == back.takes == Port.of("tokens", width=5, prefix=0, grid=(3, 4))
    assert there.takes == back.gives == Port.of("maps", channels=5, height=3, width=4)


@settings(max_examples=30, deadline=None)
@given(GRIDS, GRIDS)
def test_resampling_is_bilinear_over_the_grid(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = tokens(2, old[0] * old[1], 3)
    given_maps = TokensToMaps(3, old)(x, Pass())
    expected = F.interpolate(given_maps, size=new, mode="bilinear", align_corners=False, antialias=True)
    found = Resample(3, 0, old, 0, new)(x, Pass())
    torch.testing.assert_close(TokensToMaps(3, new)(found, Pass()), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(GRIDS, GRIDS, st.integers(0, 3), st.integers(0, 3))
def test_a_constant_stays_one_and_class_tokens_pass_as_far_as_they_go(
    old: tuple[int, int], new: tuple[int, int], prefix: int, wanted: int
) -> None:
    x = torch.cat([tokens(2, prefix, 3), torch.full((2, old[0] * old[1], 3), 0.5)], dim=1)
    leaf = Resample(3, prefix, old, wanted, new)
    found, kept = leaf(x, Pass()), min(prefix, wanted)
    assert found.shape == (2, wanted + new[0] * new[1], 3)
    assert torch.equal(found[:, :kept], x[:, :kept])
    torch.testing.assert_close(found[:, kept:], torch.full_like(found[:, kept:], 0.5))
    assert leaf.changes_nothing == (old == new and prefix == wanted)


def test_a_missing_class_token_is_the_mean_of_the_grid() -> None:
    x = tokens(2, 6, 3)
    found = Resample(3, 0, (2, 3), 1)(x, Pass())
    assert torch.equal(found[:, 0], x.mean(1))
    assert torch.equal(found[:, 1:], x)
    renewed = Resample(3, 1, (1, 5), kept=0)
    torch.testing.assert_close(renewed(x, Pass())[:, 0], x[:, 1:].mean(1))
    assert not renewed.changes_nothing
    (again,) = rebuild(describe(Chain([renewed]))).leaves
    assert torch.equal(again(x, Pass()), renewed(x, Pass()))


def test_resampling_up_keeps_what_is_smooth() -> None:
    ramp = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 4).reshape(1, 16, 1)
    up, down = Resample(1, 0, (4, 4), 0, (8, 8)), Resample(1, 0, (8, 8), 0, (4, 4))
    there = up(ramp, Pass())
    back = down(there, Pass())
    inner = back.view(4, 4)[1:3]
    torch.testing.assert_close(inner, ramp.view(4, 4)[1:3], atol=0.1, rtol=0.0)
    assert not torch.equal(back, ramp), "up and down again is not the identity"
