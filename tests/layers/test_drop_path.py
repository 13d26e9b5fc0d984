"""Drop path: drawn per sample from the key, at the right rate, and only while training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modnet.chain import Chain, Pass, describe, rebuild
from modnet.layers.block import Block
from modnet.layers.drop_path import set_drop_path, survival
from modnet.layers.stitches import LinearStitch
from modnet.randomness import Key

Tiny = Callable[..., Chain]


def tokens(ids: Tensor) -> Tensor:
    return Key.of(0, "tokens").normal(ids, 40).view(-1, 5, 8)


def test_a_sample_draws_the_same_in_any_batch() -> None:
    chain = Chain([Block(8, 2, drop_path=0.5), Block(8, 2, drop_path=0.5)]).train()
    ids = torch.tensor([4, 9, 2, 7, 100, 31])
    key = Key.of(1, "step", 3)
    whole = chain(tokens(ids), Pass(key, ids))
    for part in (ids[:2], ids[2:], ids.flip(0), ids[3:4]):
        found = chain(tokens(part), Pass(key, part))
        rows = torch.tensor([(ids == i).nonzero().item() for i in part])
        torch.testing.assert_close(found, whole[rows], atol=1e-6, rtol=1e-5)


def test_steps_leaves_and_branches_draw_apart() -> None:
    block, ids = Block(8, 2, drop_path=0.5).train(), torch.arange(64)
    x = tokens(ids)

    def factor(key: int, leaf: int) -> Tensor:
        drawn = survival(block, 0.5, x, Pass(Key.of(key), ids, leaf=leaf), branches=2)
        assert drawn is not None
        return drawn.flatten(1)

    first = factor(0, 0)
    assert torch.equal(first, factor(0, 0))
    for other in (factor(1, 0), factor(0, 1), first.flip(0)):
        agree = (first == other).float().mean().item()
        assert 0.3 < agree < 0.7


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_branches_survive_at_their_rate_and_keep_their_mean(rate: float) -> None:
    block, ids = Block(8, 2).train(), torch.arange(20_000)
    drawn = survival(block, rate, torch.zeros(len(ids), 1, 1), Pass(Key.of(0), ids), branches=2)
    assert drawn is not None
    assert drawn.shape == (2, len(ids), 1, 1)
    assert drawn.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    assert (drawn == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert drawn.mean().item() == pytest.approx(1, abs=0.05)


def test_nothing_is_dropped_in_evaluation_without_a_key_or_at_rate_zero() -> None:
    block, ids = Block(8, 2, drop_path=0.9), torch.arange(16)
    x, plain = tokens(ids), Block(8, 2)
    plain.load_state_dict(block.state_dict())
    ctx = Pass(Key.of(0), ids)
    assert torch.equal(block.train()(x, Pass()), plain(x, Pass()))
    assert torch.equal(block.eval()(x, ctx), plain(x, Pass()))
    assert torch.equal(plain.train()(x, ctx), plain(x, Pass()))
    assert not torch.equal(block.train()(x, ctx), plain(x, Pass()))
    frozen = Chain([block]).frozen().train()
    assert torch.equal(frozen(x, ctx), plain(x, Pass()))


def test_a_block_draws_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Key.uniform

    def counted(key: Key, ids: Tensor, draws: int = 1) -> Tensor:
        calls.append(draws)
        return original(key, ids, draws)

    ids = torch.arange(3)
    x = tokens(ids)
    monkeypatch.setattr(Key, "uniform", counted)
    Block(8, 2, drop_path=0.5).train()(x, Pass(Key.of(0), ids))
    assert calls == [2]


def test_rates_rise_evenly_over_the_blocks_of_the_chain_given(tiny: Tiny) -> None:
    chain = tiny(depths=(2, 1, 2))
    set_drop_path(chain, 0.4)
    assert rates(chain) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    part = chain[1:]  # the same blocks in another network get other rates
    set_drop_path(part, 0.4)
    assert rates(chain) == pytest.approx([0, 0.1, 0, 0.2, 0.4])
    set_drop_path(chain[1], 0.3)
    assert rates(chain[1]) == [0]


def test_stitches_do_not_count_and_rates_are_written_as_data(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 1))
    mixed = Chain([*chain.leaves[:2], LinearStitch(16, 16), *chain.leaves[2:]])
    set_drop_path(mixed, 0.2)
    assert rates(mixed) == pytest.approx([0, 0.2])
    assert rates(rebuild(describe(mixed))) == pytest.approx([0, 0.2])


def rates(chain: Chain) -> list[float]:
    return [leaf.drop_path for leaf in chain.leaves if isinstance(leaf, Block)]
