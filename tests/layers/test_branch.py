"""Ensembles and several heads: merging, writing as data, freezing, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.branch import Branch
from modnet.randomness import Key

Tiny = Callable[..., Chain]
MERGES: list[Literal["mean", "none"]] = ["mean", "none"]


def x() -> torch.Tensor:
    return Key.of(0).normal(torch.arange(2), 64).view(2, 1, 8, 8)


def ensemble(tiny: Tiny, merge: Literal["mean", "none"] = "mean") -> tuple[list[Chain], Chain]:
    members = [tiny(depths=(1, 1), width=8).eval(), tiny(depths=(2,), seed=1).eval()]
    return members, Chain([Branch(members, merge)])


def test_an_ensemble_averages_logits_or_gives_a_list(tiny: Tiny) -> None:
    members, chain = ensemble(tiny)
    given = [member(x()) for member in members]
    torch.testing.assert_close(chain(x()), (given[0] + given[1]) / 2)
    assert (chain.takes, chain.gives) == (members[0].takes, members[0].gives)
    _, apart = ensemble(tiny, "none")
    assert all(torch.equal(a, b) for a, b in zip(apart(x()), given, strict=True))
    assert apart.gives == Port.of("branches", of=[member.gives for member in members])


@pytest.mark.parametrize("merge", MERGES)
def test_a_branch_survives_being_written_as_data(tiny: Tiny, merge: Literal["mean", "none"]) -> None:
    _, chain = ensemble(tiny, merge)
    written = json.loads(json.dumps(describe(chain)))
    again = rebuild(written).eval()
    again.load_state_dict(chain.state_dict())
    assert torch.equal(torch.stack(list(again(x()))), torch.stack(list(chain(x()))))
    assert (again.takes, again.gives) == (chain.takes, chain.gives)
    assert describe(again) == written


def test_several_heads_follow_a_trunk_and_freeze_with_it(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 1))
    heads = [Chain(tiny(depths=(1,), seed=seed, classes=classes).leaves[-1:]) for seed, classes in ((1, 3), (2, 5))]
    network = Chain([*chain.leaves[:-1], Branch(heads, "none")])
    assert [logits.shape[1] for logits in network(x())] == [3, 5]
    twin = network.frozen().train()
    assert not any(p.requires_grad for p in twin.parameters())
    assert not any(module.training for leaf in twin.leaves for module in leaf.modules())


def test_branches_draw_for_themselves_and_report_under_their_number(tiny: Tiny) -> None:
    members = [tiny(depths=(2,), drop_path=0.5).train() for _ in range(2)]  # the same weights
    chain = Chain([Branch(members, "none")])
    first, second = chain(x(), Pass(Key.of(3)))
    assert not torch.equal(first, second)
    again, _ = chain(x(), Pass(Key.of(3)))
    assert torch.equal(first, again)


def test_matrices_are_named_from_the_leaf(tiny: Tiny) -> None:
    _, chain = ensemble(tiny)
    leaf = chain.leaves[0]
    assert leaf.matrices()["branches.1.2.attn.qkv.weight"] == 3
    assert leaf.matrices().keys() <= dict(leaf.named_parameters()).keys()


def test_chains_that_cannot_stand_side_by_side_are_refused(tiny: Tiny) -> None:
    chain = tiny()
    with pytest.raises(RequestError, match="at least one"):
        Branch([], "mean")
    with pytest.raises(ValueError, match="own their parameters"):
        Branch([chain, chain], "mean")
    with pytest.raises(RequestError, match="must take the same"):
        Branch([chain, tiny(size=16)], "none")
    with pytest.raises(RequestError, match="must give the same"):
        Branch([chain, tiny(classes=5, seed=1)], "mean")
    with pytest.raises(RequestError, match="averages logits"):
        Branch([chain[:1]], "mean")
