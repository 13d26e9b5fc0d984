"""Invariants of the layers of Neural Attentive Circuits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modnet.layers.nac import graphs, regularisers
from modnet.layers.nac.attention import LatentAttention
from modnet.layers.nac.kernel import Kernel, distances
from modnet.layers.nac.modulation import ModFC
from modnet.layers.nac.noise import noisy
from modnet.layers.nac.read_in import ReadInAttention
from modnet.layers.nac.tokenizer import ConvNeXtTokenizer
from modnet.randomness import Key

FEW = settings(max_examples=10, deadline=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Key.of(seed).generator())


@FEW
@given(st.floats(0.5, 100.0), st.integers(0, 99))
def test_the_size_of_a_code_does_not_matter(factor: float, seed: int) -> None:
    layer, x, code = ModFC(6, 3, 8, gain=0.5), normal(2, 4, 6, seed=seed), normal(4, 8, seed=seed + 1)
    torch.testing.assert_close(layer(x, factor * code), layer(x, code), atol=1e-3, rtol=1e-3)


def test_without_gain_a_modulated_layer_is_a_plain_one() -> None:
    layer, x = ModFC(6, 3, 8, gain=0.0, add_one=True), normal(2, 4, 6)
    torch.testing.assert_close(layer(x, normal(4, 8)), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_the_cheap_read_in_equals_a_key_and_a_value_for_every_pair() -> None:
    layer = ReadInAttention(5, 8, 6, 2, 3, qkv_bias=True, modulation={"gain": 0.5, "add_one": True})
    for bias in (layer.query.bias, layer.key.bias, layer.value.bias):
        assert bias is not None
        torch.nn.init.normal_(bias, generator=Key.of(3).generator())
    states, codes, tokens = normal(2, 4, 8), normal(4, 6), normal(2, 7, 5)
    heard = layer.sender_norm(tokens)[:, :, None].expand(-1, -1, 4, -1)  # (B, V, U, E)
    q = layer.query(layer.receiver_norm(states), codes).unflatten(-1, (2, 3))
    k, v = (part(heard, codes).unflatten(-1, (2, 3)) for part in (layer.key, layer.value))
    weights = (torch.einsum("buhd,bvuhd->bhuv", q, k) / 3**0.5).softmax(-1)
    mixed = torch.einsum("bhuv,bvuhd->buhd", weights, v).flatten(2)
    torch.testing.assert_close(layer(states, codes, tokens), states + layer.exit(mixed, codes), atol=1e-5, rtol=1e-5)


def test_truncated_links_carry_nothing_and_learn_nothing() -> None:
    kernel = Kernel(truncation=0.9)
    near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [-1.0, 0.2]], requires_grad=True)
    log_kernel = kernel.log(near, far)
    assert log_kernel[0, 1] == float("-inf")
    layer = LatentAttention(4, 3, 2, 2)
    x, c, heard, codes = normal(1, 1, 4), normal(1, 3), normal(1, 2, 4), normal(2, 3)
    result = layer(x, c, heard, codes, log_kernel)
    alone = layer(x, c, heard[:, :1], codes[:1], kernel.log(near, far[:1]))
    torch.testing.assert_close(result, alone)
    (grad,) = torch.autograd.grad(log_kernel[0, 0] + log_kernel.exp()[0, 1], far)
    assert grad[1].abs().max() == 0


def test_a_module_that_nobody_reaches_hears_nothing() -> None:
    layer, x = LatentAttention(4, 3, 2, 2), normal(1, 2, 4)
    silent = torch.full((2, 2), float("-inf")).index_fill(0, torch.tensor([0]), 0.0)
    result = layer(x, normal(2, 3), x, normal(2, 3), silent)
    assert result.isfinite().all()


def test_draws_open_links_as_often_as_the_kernel_says() -> None:
    kernel = Kernel(stochastic=True).train()
    signatures = normal(3, 4)
    drawn = kernel(signatures, signatures, torch.arange(4000), Key.of(0)).exp()
    assert drawn.shape == (4000, 3, 3)
    expected = kernel.log(signatures, signatures).exp()
    torch.testing.assert_close((drawn > 0.5).float().mean(0), expected, atol=0.04, rtol=0)
    again = kernel(signatures, signatures, torch.arange(2, 4), Key.of(0)).exp()
    torch.testing.assert_close(again, drawn[2:4])  # a sample's draw does not depend on its batch
    assert kernel.eval()(signatures, signatures, torch.arange(2), Key.of(0)).ndim == 2


def test_code_noise_stays_in_proportion() -> None:
    codes = normal(3, 5)
    assert ((noisy(codes, 0.05, Key.of(1)) - codes).abs() <= 0.05 * codes.abs() + 1e-7).all()
    assert noisy(torch.zeros(2, 2), 0.05, Key.of(1)).abs().max() == 0


def test_repulsion_by_hand() -> None:
    signatures = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]])
    near = 1 - 0.5**0.5
    torch.testing.assert_close(regularisers.repulsion(signatures, 0.4), torch.tensor(-near))


def test_a_matched_block_model_loses_nothing() -> None:
    target = regularisers.block_target(6, 2, 0.9, 0.2)
    shuffled = target[Key.of(0).permutation(6)]
    assert regularisers.block_model(shuffled, target) == 0


@pytest.mark.parametrize(
    ("name", "options", "edges"),
    [
        ("scale-free", {"n": 256, "m": 2}, 508),
        ("scale-free", {"n": 768, "m": 6}, 4572),
        ("ring-of-cliques", {"num_cliques": 8, "clique_size": 32}, 3976),
        ("ring-of-cliques", {"num_cliques": 12, "clique_size": 64}, 24204),
    ],
)
def test_published_graphs_have_their_edges(name: str, options: dict[str, int], edges: int) -> None:
    assert graphs.graph(name, 1, **options).number_of_edges() == edges


def test_a_fit_comes_nearer_to_its_graph_and_follows_from_its_seed() -> None:
    drawn = [graphs.adjacency(graphs.graph("scale-free", seed, n=12, m=2)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    start = normal(12, 16)
    end = graphs.fit(start, drawn[0], steps=150, lr=1e-2)
    assert graphs.hinge_loss(end, drawn[0]) < graphs.hinge_loss(start, drawn[0])
    assert graphs.score(end, drawn[0]) < graphs.score(start, drawn[0])
    assert distances(end, end).shape == (12, 12)


def test_images_that_do_not_fit_the_grid_are_refused() -> None:
    tokenizer = ConvNeXtTokenizer(1, [4, 8], [1, 0], (3, 2, 2))
    assert tokenizer(torch.zeros(1, 1, 16, 16)).shape == (1, 4, 11)
    with pytest.raises(ValueError, match=r"grid is \(2, 2\), but images of \(32, 32\)"):
        tokenizer(torch.zeros(1, 1, 32, 32))
