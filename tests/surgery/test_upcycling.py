"""Upcycled networks start as the dense one, and their experts part once they are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.chain import Chain, Pass
from modnet.errors import RequestError
from modnet.layers.block import Block
from modnet.layers.moe import MoEBlock
from modnet.randomness import Key
from modnet.recipe.routing import Upcycle
from modnet.surgery.conversion import expert_blocks
from modnet.surgery.upcycling import upcycled

IMAGES = Key.of(1).normal(torch.arange(5), 64).view(5, 1, 8, 8)


def to(**values: Any) -> Upcycle:
    return Upcycle.model_validate({"data": "data", "from": "dense", "placement": "all", **values})


def keys_of(dense: Chain) -> Tensor:
    block = dense.leaves[1]
    assert isinstance(block, Block)
    return block.mlp.fc1.weight


def made(dense: Chain, **values: Any) -> Chain:
    return upcycled(dense, to(**values), Key.of(3))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    router=st.sampled_from(["renormalised", "top-k-softmax", "noisy-top-k"]),
    copies=st.integers(1, 5),
    fragments=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_dropless_weights_that_add_up_to_one_start_as_the_dense_network(
    tiny: Callable[..., Chain], router: str, copies: int, fragments: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, copies))
    if router == "noisy-top-k":
        fragments = 1  # its weights cannot be scaled
    if chosen * fragments == 1:
        copies, chosen = copies + 1, 2
    dense = tiny().eval()
    network = made(dense, router=router, experts=copies * fragments, top_k=chosen * fragments, fragments=fragments)
    torch.testing.assert_close(network.eval()(IMAGES), dense(IMAGES), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_add_up_scale_the_dense_block(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1,)).eval()
    network = made(dense, router="softmax-top-k", experts=4, top_k=2).eval()
    tokens = network.leaves[0](IMAGES, Pass())
    block, moe = dense.leaves[1], network.leaves[1]
    assert isinstance(moe, MoEBlock)
    normed: Any = moe.norm2(tokens)
    weights = moe.moe.gate(normed.flatten(0, 1)).weights.sum(-1).view(*normed.shape[:2], 1)
    assert (weights < 0.9).all()
    torch.testing.assert_close(moe.feed(normed, Pass()), weights * block.feed(normed, Pass()))  # type: ignore[operator]


def test_the_dense_network_is_untouched_and_other_leaves_are_shared(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(2, 2))
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    network = made(dense, placement="every-2")
    assert list(expert_blocks(network)) == [2, 4]
    assert network.bounds == dense.bounds
    assert network.leaves[1] is dense.leaves[1]
    with torch.no_grad():
        for block in expert_blocks(network).values():
            for p in block.parameters():
                p.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_experts_part_after_one_step(tiny: Callable[..., Chain]) -> None:
    network = made(tiny(depths=(1,)), experts=4).train()
    block = expert_blocks(network)[1]
    assert torch.equal(block.moe.experts.fc1.weight[0], block.moe.experts.fc1.weight[3])
    network(IMAGES, Pass(Key.of(0))).square().sum().backward()
    grads = block.moe.experts.fc1.weight.grad
    assert grads is not None
    with_tokens = grads.abs().amax((1, 2)).nonzero().flatten().tolist()
    assert len(with_tokens) > 1
    assert not torch.allclose(grads[with_tokens[0]], grads[with_tokens[1]])


def test_noise_and_fresh_units_make_copies_differ(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1,))
    one, again = (made(dense, noise=0.1, reinit=0.5) for _ in range(2))
    other = upcycled(dense, to(noise=0.1), Key.of(4))
    first = expert_blocks(one)[1].moe.experts.fc1.weight
    assert torch.equal(first, expert_blocks(again)[1].moe.experts.fc1.weight)
    assert not torch.equal(first[0], first[1])
    fc1 = keys_of(dense)
    near = expert_blocks(other)[1].moe.experts.fc1.weight - fc1
    assert near.std().item() == pytest.approx(0.1 * fc1.std().item(), rel=0.1)
    far = (first - fc1).abs().amax(-1) > 0.7 * fc1.std()
    assert 0.3 < far.float().mean().item() < 0.7


def test_fragments_are_rows_of_one_copy(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1,))
    block = expert_blocks(made(dense, experts=6, fragments=2, top_k=2))[1]
    rows = block.moe.gate.gate.weight
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])
    assert block.moe.experts.fc1.weight.shape == (6, 32, 16)
    assert torch.equal(block.moe.experts.fc1.weight[:2].flatten(0, 1), keys_of(dense))


def test_a_network_without_such_blocks_is_refused(tiny: Callable[..., Chain]) -> None:
    dense = tiny(depths=(1, 1))
    with pytest.raises(RequestError, match="placement contiguous-last-3"):
        made(dense, placement="contiguous-last-3")
    with pytest.raises(RequestError, match="block 1 is a MoEBlock"):
        made(made(dense, placement="every-2"), placement="every-2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 1}, "top_k 1 router renormalised gives every token the weight 1"),
        ({"top_k": 9}, "more experts than there are"),
        ({"experts": 6, "fragments": 4, "top_k": 4}, "multiples of fragments 4"),
        ({"experts": 8, "fragments": 4, "top_k": 4, "router": "cosine"}, "take renormalised or top-k-softmax"),
        ({"experts": 8, "fragments": 4, "top_k": 4, "router": "avg-k"}, "take renormalised or top-k-softmax"),
    ],
)
def test_what_could_not_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to(**values)
