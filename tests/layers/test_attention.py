"""Attention in bfloat16 on the CPU goes another way than in float32, to the same values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.layers import attention
from modnet.layers.attention import attend
from modnet.randomness import Key


def parts(queries: int = 7, tokens: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    sizes, ids = (queries, tokens, tokens), torch.arange(2)
    drawn = [Key.of(i).normal(ids, 3 * n * 8).view(2, 3, n, 8).to(dtype).requires_grad_() for i, n in enumerate(sizes)]
    return drawn[0], drawn[1], drawn[2]


@pytest.mark.parametrize("queries", [7, 1])
def test_bfloat16_gives_what_float32_gives(queries: int) -> None:
    given = parts(queries, dtype=torch.bfloat16)
    exact = q, k, v = tuple(part.detach().float().requires_grad_() for part in given)
    out, wanted = attend(*given), F.scaled_dot_product_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, atol=0.02, rtol=0.02)
    own = torch.autograd.grad(out.float().square().sum(), given)
    for grad, other in zip(own, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        torch.testing.assert_close(grad.float(), other, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "longest", "fused"), [(torch.float32, 512, 1), (torch.bfloat16, 512, 0), (torch.bfloat16, 6, 1)]
)
def test_the_fused_kernel_is_used_where_it_is_fast_or_scores_are_large(
    dtype: torch.dtype, longest: int, fused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q)
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr(attention, "LONGEST", longest)
    attend(*parts(dtype=dtype))
    assert len(calls) == fused
