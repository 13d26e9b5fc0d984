"""Stitches let a module stand in another network's place, and fold without changing the function."""

from __future__ import annotations

import pytest
import torch

from modnet.chain import Chain, Pass, Port, describe, rebuild
from modnet.errors import RequestError
from modnet.models.vit import vit
from modnet.recipe.models import ViT
from modnet.surgery import assemble, fold_stitches, least_squares_stitch, stitched, without_stitches
from modnet.surgery.stitching import foldable

IMAGE = Port.of("image", channels=1, size=8)


def small(width: int, seed: int, patch: int = 4, depths: tuple[int, ...] = (1, 2, 1)) -> Chain:
    torch.manual_seed(seed)
    return vit(ViT(width=width, heads=2, depths=depths, patch=patch), IMAGE, 3).eval()


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


def test_another_token_grid_is_refused_with_the_reason() -> None:
    with pytest.raises(RequestError, match="grid"):
        stitched(small(8, 1, patch=2)[1], small(12, 0), 1)
