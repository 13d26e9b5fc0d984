"""Blocks, stems and heads: shapes, errors, initial values, and what they declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.errors import RequestError
from modnet.layers.attention import Attention
from modnet.layers.block import Block
from modnet.layers.head import Head
from modnet.layers.stem import ConvStem, PatchStem
from modnet.randomness import Key

Tiny = Callable[..., Chain]


def tokens(batch: int = 2, count: int = 5, width: int = 12, seed: int = 0) -> Tensor:
    return Key.of(seed).normal(torch.arange(batch), count * width).view(batch, count, width)


def test_attention_is_softmax_of_scaled_products_head_by_head() -> None:
    torch.manual_seed(0)
    layer, x = Attention(12, 3), tokens()
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, -1)), atol=1e-6, rtol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(RequestError, match="width 12 does not divide into 5 heads.*such as 4"):
        Attention(12, 5)


def test_a_block_is_two_residual_branches() -> None:
    block, x = Block(12, 3), tokens()
    middle = x + block.attn(block.norm1(x))
    expected = middle + block.mlp(block.norm2(middle))
    assert torch.equal(block(x, Pass()), expected)
    hidden = nn.functional.gelu(block.mlp.fc1(x), approximate="none")
    assert torch.equal(block.mlp(x), block.mlp.fc2(hidden))


def test_a_block_without_qkv_bias_has_none() -> None:
    for biased in (False, True):
        names = {name for name, _ in Block(12, 3, qkv_bias=biased).named_parameters()}
        assert ("attn.qkv.bias" in names) == biased


def test_declared_matrices_are_two_dimensional_and_divide(tiny: Tiny) -> None:
    for leaf in tiny().leaves:
        named = dict(leaf.named_parameters())
        for name, count in leaf.matrices().items():
            assert named[name].ndim == 2
            assert len(named[name]) % count == 0
        assert bool(leaf.matrices()) == (leaf.role == "block")
    block = Block(12, 3)
    assert set(block.matrices()) == {n for n, p in block.named_parameters() if p.ndim == 2}


def test_initial_values_are_the_papers(tiny: Tiny) -> None:
    chain = tiny(depths=(1,), width=64, size=16)
    for name, parameter in chain.named_parameters():
        if "patch_embed" in name:
            continue
        if parameter.ndim == 1:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name
        else:
            count = parameter.numel()
            assert parameter.std().item() == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5), name


def test_the_patch_convolution_keeps_torchs_own_start() -> None:
    with Key.of(3).forked():
        stem: Any = PatchStem(3, 8, 12, 4)
    with Key.of(3).forked():
        conv: Any = nn.Conv2d(3, 12, 4, stride=4)
    assert torch.equal(stem.patch_embed.proj.weight, conv.weight)
    assert torch.equal(stem.patch_embed.proj.bias, conv.bias)


@pytest.mark.parametrize("stem", [PatchStem, ConvStem])
@pytest.mark.parametrize(("size", "patch"), [(8, 2), (8, 4), (28, 4), (32, 4), (64, 8), (224, 16), (28, 14)])
@pytest.mark.parametrize("token", [True, False])
def test_stems_give_the_grid_of_their_patches(stem: Any, size: int, patch: int, token: bool) -> None:
    leaf = stem(1, size, 8, patch, token)
    side = size // patch
    assert leaf.gives["grid"] == (side, side)
    out = leaf(torch.zeros(2, 1, size, size), Pass())
    assert out.shape == (2, int(token) + side * side, 8)
    assert leaf.pos_embed.shape == (1, *out.shape[1:])


def test_a_class_token_comes_first_and_positions_are_added() -> None:
    stem: Any = PatchStem(1, 8, 6, 4)
    x = Key.of(0).normal(torch.arange(2), 64).view(2, 1, 8, 8)
    out = stem(x, Pass())
    torch.testing.assert_close(out[:, 0], (stem.cls_token + stem.pos_embed[:, :1])[:, 0].expand(2, -1))
    patch = x[1, :, 4:, :4]  # the third in reading order
    weight, bias = stem.patch_embed.proj.weight, stem.patch_embed.proj.bias
    by_hand = (weight * patch).sum((1, 2, 3)) + bias + stem.pos_embed[0, 3]
    torch.testing.assert_close(out[1, 3], by_hand, atol=1e-5, rtol=1e-5)


def test_no_stem_mixes_samples() -> None:
    for stem in (PatchStem(1, 8, 8, 4), ConvStem(1, 8, 8, 4)):
        x = Key.of(0).normal(torch.arange(3), 64).view(3, 1, 8, 8)
        together = stem.train()(x, Pass())
        alone = torch.cat([stem(row[None], Pass()) for row in x])
        torch.testing.assert_close(together, alone)
        assert not list(stem.buffers())


def test_sizes_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(RequestError, match=r"28 x 28 .* patches of 8; .*2, 4, 7, 14, 28"):
        PatchStem(1, 28, 8, 8)
    with pytest.raises(RequestError, match="even, not 7"):
        ConvStem(1, 28, 8, 7)


def test_heads_pool_the_class_token_or_the_mean_of_the_patches() -> None:
    x = tokens()
    by_token, by_mean = Head(12, 3, "token", prefix=1), Head(12, 3, "mean", prefix=1)
    with torch.no_grad():
        normed = by_mean.norm(x)
        torch.testing.assert_close(by_token(x, Pass()), by_token.head(by_token.norm(x)[:, 0]))
        torch.testing.assert_close(by_mean(x, Pass()), by_mean.head(normed[:, 1:].mean(1)))
    with pytest.raises(RequestError, match="pool: mean"):
        Head(12, 3, "token", prefix=0)
