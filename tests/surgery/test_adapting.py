"""Trained networks meet other images and classes: what follows, what is resized, what starts afresh."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modnet.chain import Chain, Port
from modnet.layers.branch import Branch
from modnet.models.timm import timm_chain
from modnet.randomness import Key
from modnet.recipe.models import Timm
from modnet.recipe.stages import Mismatch
from modnet.surgery import adapt, stitched
from modnet.surgery.adapting import resized_positions

Tiny = Callable[..., Chain]


def image(size: int, channels: int = 1) -> Port:
    return Port.of("image", channels=channels, size=size)


def timm(name: str, size: int, channels: int = 1) -> Chain:
    params = Timm(name=f"timm:{name}", depths=None)
    return timm_chain(params, image(size, channels), 5)


def test_a_network_that_fits_comes_back_itself(tiny: Tiny) -> None:
    chain = tiny()
    assert adapt(chain, image(8), 3, Mismatch(), Key.of(0)) == (chain, [])


def test_every_leaf_of_our_own_follows_the_images(tiny: Tiny) -> None:
    host, chain = tiny(), tiny(width=8, seed=1)
    whole = Chain([leaf for i, m in enumerate(chain) for leaf in stitched(m, host, i).leaves])
    adapted, changes = adapt(whole, image(16), 7, Mismatch(), Key.of(0))
    assert adapted(torch.zeros(2, 1, 16, 16)).shape == (2, 7)
    assert {leaf.gives["grid"] for leaf in adapted.leaves[:-1] if leaf.gives is not None} == {(4, 4)}
    last = len(adapted.leaves) - 1
    assert [c.split(":")[0] for c in changes] == ["0.pos_embed", f"{last}.head.weight", f"{last}.head.bias"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [("vit_tiny_patch16_224", 1), ("deit3_small_patch16_224", 0), ("vit_little_patch16_reg1_gap_256", 0)],
)
def test_every_leaf_of_a_timm_model_follows_the_images(name: str, rows: int) -> None:
    chain = timm(name, 32)
    adapted, changes = adapt(chain, image(64), 3, Mismatch(), Key.of(0))
    assert adapted(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    assert {leaf.gives["grid"] for leaf in adapted.leaves[:-1] if leaf.gives is not None} == {(4, 4)}
    assert f"0.pos_embed: resized from {rows + 4} to {rows + 16} positions" in changes
    state, old = adapted.state_dict(), chain.state_dict()
    assert torch.equal(state["0.pos_embed"], resized_positions(old["0.pos_embed"], (2, 2), (4, 4)))
    assert torch.equal(state["3.attn.qkv.weight"], old["3.attn.qkv.weight"])


def test_other_channels_start_the_patch_embedding_afresh() -> None:
    adapted, changes = adapt(timm("vit_tiny_patch16_224", 32), image(32, 3), 5, Mismatch(), Key.of(0))
    assert adapted(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert changes == ["0.patch_embed.proj.weight: drawn afresh, (192, 3, 16, 16)"]


def test_the_heads_of_a_branch_follow_as_well(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 1))
    heads = [Chain(tiny(depths=(1, 1), seed=seed).leaves[-1:]) for seed in (1, 2)]
    adapted, _ = adapt(Chain([*chain.leaves[:-1], Branch(heads, "mean")]), image(16), 4, Mismatch(), Key.of(0))
    assert adapted(torch.zeros(2, 1, 16, 16)).shape == (2, 4)
    assert adapted.gives == Port.of("logits", classes=4, per="image")


def test_positions_in_front_of_the_grid_are_kept_and_a_constant_stays_one() -> None:
    table = torch.cat([torch.full((1, 2, 3), 7.0), torch.full((1, 6, 3), 2.0)], dim=1)
    resized = resized_positions(table, (2, 3), (4, 5))
    assert resized.shape == (1, 22, 3)
    assert torch.equal(resized[:, :2], table[:, :2])
    torch.testing.assert_close(resized[:, 2:], torch.full((1, 20, 3), 2.0))
