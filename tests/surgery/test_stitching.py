"""Stitches let a module stand in another network's place, and fold without changing the function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.adapters import Resample
from modnet.layers.stitches import LinearStitch
from modnet.models.vit import vit
from modnet.recipe.models import ViT
from modnet.surgery import assemble, fold_stitches, least_squares_stitch, stitched, without_stitches
from modnet.surgery.bridging import bridge, laid_out_as, shortened
from modnet.surgery.stitching import foldable

IMAGE = Port.of("image", channels=1, size=8)


def small(width: int, seed: int, patch: int = 4, depths: tuple[int, ...] = (1, 2, 1), pool: Any = "token") -> Chain:
    torch.manual_seed(seed)
    return vit(ViT(width=width, heads=2, depths=depths, patch=patch, pool=pool), IMAGE, 3).eval()


def students(kind: str) -> list[Chain]:
    host, student = small(12, 0), small(8, 1)
    return [stitched(module, host, i, kind) for i, module in enumerate(student)]


@pytest.mark.parametrize("kind", ["linear", "ln-linear"])
def test_stitched_modules_fit_the_host_and_gradients_reach_both_stitches(kind: str) -> None:
    host = small(12, 0)
    for i, student in enumerate(students(kind)):
        mixed = host[:i].frozen() + student + host[i + 1 :].frozen()
        mixed(torch.randn(2, 1, 8, 8)).square().mean().backward()
        assert all(p.grad is not None for p in student.parameters())
        assert [leaf.role for leaf in student.leaves].count("stitch") == (1 if i in (0, 2) else 2)


def test_identity_stitches_leave_the_network_as_it_is() -> None:
    host = small(12, 0)
    joined = fold_stitches(assemble(stitched(m, host, i, "identity") for i, m in enumerate(host)))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(joined(x), host(x))


def test_identity_between_unequal_widths_is_refused() -> None:
    with pytest.raises(RequestError, match="equal widths"):
        students("identity")


def test_folding_keeps_the_function_and_the_cut() -> None:
    joined = assemble(students("linear"))
    folded = fold_stitches(joined)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(folded(x), joined(x), atol=1e-5, rtol=1e-5)
    assert len(folded.leaves) == len(joined.leaves) - 2
    assert folded.depths == (1, 2, 1)
    again = rebuild(describe(folded))
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(x), folded(x))


def test_a_norm_between_stitches_does_not_fold() -> None:
    taught = students("ln-linear")
    assert not foldable(taught)
    assert foldable(students("linear"))
    assert len(fold_stitches(assemble(taught)).leaves) == len(assemble(taught).leaves)


def test_without_stitches_a_student_is_its_module_again() -> None:
    student = small(8, 1)
    for i, module in enumerate(student):
        assert without_stitches(stitched(module, small(12, 0), i)).leaves == module.leaves


def test_a_least_squares_stitch_finds_the_map_again() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 10, 5, generator=generator)
    weight, bias = torch.randn(3, 5, generator=generator), torch.randn(3, generator=generator)
    stitch = least_squares_stitch(x, x @ weight.T + bias, prefix=1, grid=(3, 3))
    torch.testing.assert_close(stitch.fc.weight.detach(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stitch.fc.bias.detach(), bias, atol=1e-5, rtol=1e-5)
    assert stitch.gives == Port.of("tokens", width=3, prefix=1, grid=(3, 3))
    assert all(p.requires_grad for p in stitch.parameters())


def test_no_stitch_near_the_least_squares_one_is_closer() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(20, 4, width, generator=generator, dtype=torch.float64) for width in (5, 3))
    stitch = least_squares_stitch(x, y)

    def residual() -> float:
        return (stitch(x, Pass()) - y).square().sum().item()

    best = residual()
    for _ in range(10):
        state = {name: tensor.clone() for name, tensor in stitch.state_dict().items()}
        with torch.no_grad():
            for parameter in stitch.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=1e-3)
        assert residual() > best
        stitch.load_state_dict(state)


def test_a_bridge_lays_features_out_and_a_way_back_is_shortened() -> None:
    own, host = Port.of("tokens", width=6, prefix=1, grid=(4, 4)), Port.of("maps", channels=6, height=7, width=7)
    there, back = bridge(own, host), bridge(host, own)
    assert [type(leaf).__name__ for leaf in there + back] == ["Resample", "TokensToMaps", "MapsToTokens", "Resample"]
    assert Chain(there).takes == own
    assert Chain(there).gives == host
    (renewed,) = shortened([*there, *back])
    x = torch.randn(2, 17, 6)
    out = renewed(x, Pass())
    assert torch.equal(out[:, 1:], x[:, 1:])
    torch.testing.assert_close(out[:, 0], x[:, 1:].mean(1))
    assert bridge(own, own) == []
    assert shortened(bridge(host, laid_out_as(host, host)) + bridge(laid_out_as(host, host), host)) == []


def test_class_tokens_that_pass_both_ways_need_no_leaf() -> None:
    own = Port.of("tokens", width=6, prefix=1, grid=(4, 4))
    host = Port.of("tokens", width=6, prefix=2, grid=(7, 7))
    assert shortened([*bridge(own, host), *bridge(host, own)]) == []


def test_resampling_to_a_third_grid_stays() -> None:
    first, second, third = (Port.of("tokens", width=6, prefix=0, grid=(n, n)) for n in (4, 7, 5))
    leaves = [*bridge(first, second), *bridge(second, third)]
    assert shortened(leaves) == leaves


def test_features_without_a_common_layout_are_refused() -> None:
    with pytest.raises(RequestError, match="tokens or feature maps, not image"):
        bridge(IMAGE, Port.of("tokens", width=6))
    with pytest.raises(RequestError, match="must say their prefix and grid"):
        bridge(Port.of("tokens", width=6, grid=(2, 2)), Port.of("tokens", width=6, grid=(4, 4)))


@pytest.mark.parametrize("kind", ["linear", "ln-linear"])
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_modules_learn_in_a_host_of_another_token_grid(kind: str, pool: str) -> None:
    host, student = small(12, 0, patch=2, pool="mean"), small(8, 1, pool=pool)
    for i, module in enumerate(student):
        taught = stitched(module, host, i, kind)
        mixed = host[:i].frozen() + taught + host[i + 1 :].frozen()
        mixed(torch.randn(2, 1, 8, 8)).square().mean().backward()
        assert all(p.grad is not None for leaf in taught.leaves if leaf.role != "block" for p in leaf.parameters())


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize(("pool", "host_pool"), [("token", "mean"), ("mean", "token"), ("token", "token")])
def test_an_assembled_student_has_no_resampling_of_its_grid(patch: int, pool: str, host_pool: str) -> None:
    host, student = small(12, 0, patch=patch, pool=host_pool), small(8, 1, pool=pool)
    modules = [stitched(m, host, i, "linear") for i, m in enumerate(student)]
    assert foldable(modules)
    joined = assemble(modules)
    folded = fold_stitches(joined)
    stitches = [leaf for leaf in folded.leaves if leaf.role == "stitch"]
    assert {port["grid"] for leaf in stitches for port in (leaf.takes, leaf.gives) if port is not None} == {(2, 2)}
    lost = pool == "token" and host_pool == "mean"
    assert [type(leaf).__name__ for leaf in stitches] == ["LinearStitch", "Resample"][: 1 + lost] * 2
    assert folded.depths == (1, 2, 1)
    x = torch.randn(4, 1, 8, 8)
    if patch == 4:  # equal grids: nothing is lost, so folding is exact
        torch.testing.assert_close(folded(x), joined(x), atol=1e-5, rtol=1e-5)
    again = rebuild(describe(folded))
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(x), folded(x))


def test_resampling_commutes_with_an_affine_map() -> None:
    first, second = LinearStitch(6, 5, 1, (2, 3)).double(), LinearStitch(5, 4, 1, (2, 3)).double()
    for stitch in (first, second):
        torch.nn.init.normal_(stitch.fc.bias)
    renewed = Resample(5, 1, (2, 3), kept=0).double()
    joined = Chain(shortened([first, renewed, second]))
    assert [type(leaf).__name__ for leaf in joined.leaves] == ["LinearStitch", "Resample"]
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(joined(x), second(renewed(first(x, Pass()), Pass()), Pass()))


def test_a_norm_keeps_both_maps_but_no_resampling() -> None:
    host, student = small(12, 0, patch=2), small(8, 1)
    modules = [stitched(m, host, i, "ln-linear") for i, m in enumerate(student)]
    assert not foldable(modules)
    folded = fold_stitches(assemble(modules))
    assert [type(leaf).__name__ for leaf in folded.leaves if leaf.role == "stitch"] == ["NormLinearStitch"] * 4
