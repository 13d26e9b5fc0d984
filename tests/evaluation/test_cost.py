"""Costs against the published numbers and against sums by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import modnet.recipe.models  # noqa: F401 - registers the names
from modnet.chain import Chain, Pass, Plain, Port
from modnet.evaluation import cost as costs
from modnet.evaluation.cost import Cost, cost, example, on_meta, training_flops
from modnet.layers.stitches import LinearStitch
from modnet.registry import MODELS

Tiny = Callable[..., Chain]


def formula(width: int, blocks: int, tokens: int = 197, classes: int = 1000, patch: int = 16) -> int:
    """Multiply-adds of the matrix products of a ViT (SN-Net's count without its norms)."""
    stem = (tokens - 1) * 3 * patch**2 * width
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return stem + blocks * block + classes * width


@pytest.mark.parametrize(
    ("name", "width", "published"),
    [("vit-ti", 192, 1_258_411_200), ("vit-s", 384, 4_608_338_304), ("vit-b", 768, 17_582_740_224)],
)
def test_multiply_adds_are_the_published_ones(name: str, width: int, published: int) -> None:
    entry = MODELS.get(name)
    port = Port.of("image", channels=3, size=224)
    with torch.device("meta"):
        chain = entry.resolve()(entry.params.model_validate({"name": name, **entry.preset}), port, 1000)
    found = cost(chain, port)
    assert found.macs == formula(width, 12)
    norms = 12 * 10 * 197 * width + 5 * 197 * width  # 5 an element, which the publication counts
    assert found.macs + norms == published


def test_the_cost_of_a_chain_is_that_of_its_modules(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 2, 1))
    parts = [cost(module, module.takes) for module in chain if module.takes is not None]
    assert Cost(*(sum(getattr(p, name) for p in parts) for name in ("parameters", "macs", "active"))) == cost(
        chain, example_port()
    )


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_counting_on_the_cpu_gives_the_same(tiny: Tiny, stem: str) -> None:
    chain = tiny(stem=stem)
    whole = Pass(wanted=frozenset(range(len(chain.leaves))))  # all tokens of the last block as well
    with costs.flop_counter() as counter:
        chain(example(example_port()), whole).sum().backward()
    assert counter.get_total_flops() == training_flops(chain, example_port())
    with costs.flop_counter() as counter, torch.no_grad():
        chain(example(example_port()), whole)
    assert counter.get_total_flops() == 2 * cost(chain, example_port()).macs


def test_a_backward_pass_costs_what_is_trained(tiny: Tiny) -> None:
    chain, port = tiny(depths=(1, 1, 1)), example_port()
    forward = 2.0 * cost(chain, port).macs
    block = 2.0 * cost(chain[1], Port.of("tokens", width=16, prefix=1, grid=(2, 2))).macs
    attention = 2.0 * 2 * 5 * 5 * 16
    head = 2.0 * 16 * 3
    stem = 2.0 * 4 * 16 * 16
    assert training_flops(chain.frozen(), port) == forward
    assert training_flops(chain, port) == 3 * forward - stem  # pixels take no gradient
    only_head = chain[:2].frozen() + Chain(chain.leaves[3:4]).frozen() + Chain(chain.leaves[4:])
    assert training_flops(only_head, port) == forward + 2 * head  # its norm learns as well
    weights = block - attention  # products with a weight
    middle = chain[:1].frozen() + chain[1] + chain[2:].frozen()
    expected = forward + 2 * block + (weights + 2 * attention) + head
    assert training_flops(middle, port) == expected


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_convolutions_cost_as_much_for_each_gradient_as_forward(groups: int, stride: int) -> None:
    layer = torch.nn.Conv2d(8, 16, 3, stride=stride, padding=1, groups=groups)
    chain, port = Chain([Plain(layer)]), Port.of("maps", channels=8, height=6, width=6)
    forward = 2 * (6 // stride) ** 2 * 16 * (8 // groups) * 9
    assert 2 * cost(chain, port).macs == forward
    assert training_flops(chain, port) == 2 * forward
    assert training_flops(chain, port, input_grad=True) == 3 * forward
    assert training_flops(chain.frozen(), port, input_grad=True) == 2 * forward


def test_gradients_to_the_input_pass_through_frozen_parts(tiny: Tiny) -> None:
    chain, tokens = tiny(depths=(1, 1, 1)), Port.of("tokens", width=16, prefix=1, grid=(2, 2))
    block = 2.0 * (5 * 16 * (3 * 16 + 16 + 2 * 4 * 16))  # qkv, proj, and the two layers of the perceptron
    attention = 2.0 * 2 * 5 * 5 * 16  # scores and mixing
    head = 2.0 * 16 * 3
    tail = chain[2:]
    assert training_flops(tail.frozen(), tokens) == block + attention + head
    assert training_flops(tail.frozen(), tokens, input_grad=True) == 2 * block + 3 * attention + 2 * head
    assert training_flops(tail, tokens, input_grad=True) == 3 * (block + attention + head)
    stitch = Chain([LinearStitch(16, 8, 1, (2, 2))])
    assert training_flops(stitch, tokens) == 2 * (2 * 5 * 16 * 8)
    assert training_flops(stitch, tokens, input_grad=True) == 3 * (2 * 5 * 16 * 8)
    assert training_flops(Chain(), tokens, input_grad=True) == 0


@pytest.mark.parametrize("i", [0, 1, 2])
def test_front_module_and_tail_add_up_to_the_hybrid(tiny: Tiny, i: int) -> None:
    chain, port = tiny(depths=(1, 1, 1)), example_port()
    front, tail = chain[:i].frozen(), chain[i + 1 :].frozen()
    parts = training_flops(front, port) + training_flops(chain[i], chain[i].takes or port)
    parts += training_flops(tail, tail.takes or port, input_grad=True)
    assert parts == training_flops(front + chain[i] + tail, port)


def test_the_meta_twin_has_no_storage_and_leaves_the_chain_alone(tiny: Tiny) -> None:
    chain = tiny().train()
    mixed = chain[:1].frozen() + chain[1:]
    twin = on_meta(mixed)
    assert all(p.is_meta for p in twin.parameters())
    pairs = list(zip(mixed.parameters(), twin.parameters(), strict=True))
    assert [p.requires_grad for p, _ in pairs] == [q.requires_grad for _, q in pairs]
    training_flops(mixed, example_port())
    assert all(p.grad is None and not p.is_meta for p in chain.parameters())
    assert chain.leaves[1].training


def test_open_ports_have_no_example() -> None:
    assert example(Port.of("tokens", width=4, prefix=1, grid=(2, 3)), 5).shape == (5, 7, 4)
    for port in (Port.of("tokens", width=4), Port.of("ids", vocab=3)):
        with pytest.raises(ValueError, match="with all sizes"):
            example(port)


def example_port() -> Port:
    return Port.of("image", channels=1, size=8)
