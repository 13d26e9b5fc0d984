from __future__ import annotations

import pytest
import torch
from torch import nn

from modnet.chain import Chain, Module
from modnet.engine.optimizers import adamw, decays, sgd, trainable
from modnet.recipe import training


class Stem(Module):
    role = "stem"

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4))
        self.proj = nn.Conv2d(1, 4, 2)
        self.norm = nn.LayerNorm(4)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("0.attn.qkv.weight", (6, 2), True),
        ("0.attn.qkv.bias", (6,), False),
        ("0.experts.bias", (3, 6), False),
        ("0.cls_token", (1, 1, 4), False),
        ("0.reg_token", (1, 4, 4), False),
        ("0.pos_embed", (1, 5, 4), False),
        ("0.patch_embed.proj.weight", (4, 1, 2, 2), True),
        ("0.norm.weight", (4,), False),
    ],
)
def test_decay_is_for_matrices(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.empty(shape)) is expected


def test_groups_hold_every_trainable_parameter_once() -> None:
    shared = nn.Linear(4, 4)
    chain = Chain([Stem(), shared]) + Chain([nn.Linear(4, 4)]).frozen()
    for optimizer in (adamw(training.AdamW(lr=0.1), chain), sgd(training.SGD(lr=0.1), chain)):
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in trainable(chain).values())
        assert {group["base_lr"] for group in optimizer.param_groups} == {0.1}
    decayed, rest = adamw(training.AdamW(weight_decay=0.3), chain).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert len(decayed["params"]) == 2


def test_fused_adamw_is_adamw() -> None:
    chain = Chain([nn.Linear(4, 4)])
    plain = chain.cloned()
    params = training.AdamW(lr=0.1, weight_decay=0.0)
    ours, theirs = adamw(params, chain), torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for c, o in ((chain, ours), (plain, theirs)):
            o.zero_grad()
            c(torch.ones(2, 4)).square().sum().backward()
            o.step()
    for p, q in zip(chain.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("quirk", "expected"),
    [("", {"0.w"}), ("quirk_decay_embeddings", {"0.w", "0.cls_token"}),
     ("quirk_decay_all", {"0.w", "0.cls_token", "0.bias", "0.codes"})],
)  # fmt: skip
def test_quirks_of_decay(quirk: str, expected: set[str]) -> None:
    params = training.AdamW(**({quirk: True} if quirk else {}))
    shapes = {"0.w": (2, 2), "0.cls_token": (1, 1, 2), "0.bias": (2,), "0.codes": (3, 2)}
    assert {name for name, shape in shapes.items() if decays(name, torch.empty(shape), params)} == expected
