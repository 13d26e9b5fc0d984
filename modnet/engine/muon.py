"""Muon (Jordan et al. 2024): momentum whose singular values are all brought near one, on declared matrix views.

A parameter may hold several matrices (the thirds of qkv, the experts of a stack). All matrices of equal shape are kept
in one stacked tensor, so that a step is a few batched products whatever the depth of the network. Vectors, stems and
heads are left to AdamW inside the same optimizer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modnet.engine.divided import local, placed, splits, whole
from modnet.recipe.training import Muon as MuonParams

# The quintic's coefficients and the norm's guard are those of torch.optim.Muon.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for Newton-Schulz and why: bfloat16 (as torch.optim.Muon) where it is native, else float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies bf16 natively"
        return torch.float32, "the GPU only emulates bf16"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "the CPU has AVX512_BF16 or AMX"
    return torch.float32, "the CPU has no bf16 instructions"


def newton_schulz(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Approximately orthogonalise a stack of matrices, shape (n, a, b), in ``dtype``; the result has that dtype."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def rate_factor(rows: int, columns: int, rule: str) -> float:
    """What a matrix's learning rate is multiplied by: Jordan's ``original`` or Moonshot's ``match_rms_adamw``."""
    return math.sqrt(max(1.0, rows / columns)) if rule == "original" else 0.2 * math.sqrt(max(rows, columns))


def matrix_columns(parameter: Tensor) -> int:
    """Columns of the matrices in a parameter: its last dimension, or all that an output channel of a kernel reads.

    The kernel of a convolution (out, in, height, width) is a matrix of ``out`` rows (Jordan et al. 2024).
    """
    return parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]


class _Stack:
    """All matrices of one shape: their momentum and update, stacked, and views of both for each parameter.

    Of a parameter that is divided over processes, these are the matrices that are here, whole.
    """

    def __init__(self, entries: list[tuple[nn.Parameter, int]], rows: int, columns: int) -> None:
        first, sizes = entries[0][0], [count for _, count in entries]
        self.params, self.rows, self.columns = [param for param, _ in entries], rows, columns
        self.momentum = torch.zeros(sum(sizes), rows, columns, dtype=first.dtype, device=first.device)
        self.update = torch.zeros_like(self.momentum)
        self.momentum_views = self._views(self.momentum, sizes)
        self.update_views = self._views(self.update, sizes)

    def _views(self, stack: Tensor, sizes: list[int]) -> list[Tensor]:
        return [part.view(p.shape) for part, p in zip(stack.split(sizes), self.here(), strict=True)]

    def here(self) -> list[Tensor]:
        """The parameters, of divided ones what is here."""
        return [local(p) for p in self.params]

    def direction(self, momentum: float, nesterov: bool) -> Tensor:
        """What is to be orthogonalised, (n, rows, columns): the momentum, or with Nesterov's look ahead."""
        self._gather()
        self.momentum.lerp_(self.update, 1 - momentum)
        return self.update.lerp_(self.momentum, momentum) if nesterov else self.momentum

    def _gather(self) -> None:
        """Copy this step's gradients into the update; a parameter without one counts as zero."""
        missing = [u for u, p in zip(self.update_views, self.params, strict=True) if p.grad is None]
        if missing:
            torch._foreach_zero_(missing)
        pairs = [(u, local(p.grad)) for u, p in zip(self.update_views, self.params, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_copy_([u for u, _ in pairs], [g for _, g in pairs])

    def moves(self, orthogonal: Tensor) -> list[Tensor]:
        """What :meth:`direction` became, in the shapes of :meth:`here`."""
        self.update.copy_(orthogonal)
        return self.update_views


class _Divided:
    """A parameter of whose matrices every process has some rows; nothing of it is whole between steps.

    Each process gathers the whole matrices, orthogonalises them as all others do, and moves its rows.
    """

    def __init__(self, param: nn.Parameter, rows: int, columns: int) -> None:
        self.params, self.rows, self.columns = [param], rows, columns
        self.momentum_views = [torch.zeros_like(local(param))]

    def here(self) -> list[Tensor]:
        """What is here of the parameter."""
        return [local(self.params[0])]

    def direction(self, momentum: float, nesterov: bool) -> Tensor:
        """As for a stack, whole matrices of this one parameter."""
        (param,), (own,) = self.params, self.momentum_views
        grad = local(param.grad) if param.grad is not None else torch.zeros_like(own)
        own.lerp_(grad, 1 - momentum)
        return whole(grad.lerp(own, momentum) if nesterov else own, param).view(-1, self.rows, self.columns)

    def moves(self, orthogonal: Tensor) -> list[Tensor]:
        """What is here of what the direction became."""
        (param,) = self.params
        return [local(placed(orthogonal.to(param.dtype).reshape(param.shape), param))]


class Muon(torch.optim.Optimizer):
    """Muon on ``matrices`` (parameter to number of equal matrices along its first axis), AdamW on ``others``.

    ``others`` are AdamW's parameter groups. Every group keeps ``base_lr``, which a schedule multiplies. The momentum of
    a parameter is a view into its shape's stack, so that its state reads like any optimizer's.
    """

    def __init__(self, matrices: Mapping[nn.Parameter, int], others: list[dict[str, Any]], params: MuonParams) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "lr": params.lr, "base_lr": params.lr, "weight_decay": params.weight_decay}
        ]
        self._others = _fused_adamw(others, params) if others else None
        super().__init__([g for g in groups if g["params"]] + others, {"lr": params.lr})
        self.settings = params
        device = next(iter(matrices), torch.empty(0)).device
        self.dtype = fastest_dtype(device)[0]
        self._stacks = _stacks(matrices)
        for stack in self._stacks:
            for param, view in zip(stack.params, stack.momentum_views, strict=True):
                self.state[param] = {"momentum_buffer": view}
        if self._others is not None:
            # One list of groups and one state for both, so that rates set here reach AdamW.
            self._others.param_groups = self.param_groups[1:] if matrices else self.param_groups
            self._others.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; raises ValueError if a closure is given."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for stack in self._stacks:
            self._step(stack, self.param_groups[0])
        if self._others is not None:
            self._others.step()
        return None

    def _step(self, stack: _Stack | _Divided, group: dict[str, Any]) -> None:
        lr, settings = group["lr"], self.settings
        direction = stack.direction(settings.momentum, settings.nesterov)
        orthogonal = newton_schulz(direction, settings.ns_steps, self.dtype)
        here = stack.here()
        if settings.weight_decay:
            torch._foreach_mul_(here, 1 - lr * group["weight_decay"])
        factor = rate_factor(stack.rows, stack.columns, settings.adjust_lr)
        torch._foreach_add_(here, stack.moves(orthogonal), alpha=-lr * factor)


def _stacks(matrices: Mapping[nn.Parameter, int]) -> list[_Stack | _Divided]:
    by_shape: dict[tuple[Any, ...], list[tuple[nn.Parameter, int]]] = defaultdict(list)
    apart: list[_Stack | _Divided] = []
    for param, count in matrices.items():
        columns = matrix_columns(param)
        rows, rest = divmod(param.numel(), count * columns)
        if param.ndim < 2 or rest or not rows:
            raise ValueError(f"a parameter of shape {tuple(param.shape)} does not hold {count} equal matrices")
        if splits(param, len(param) // count):
            apart.append(_Divided(param, rows, columns))
        else:
            here = count * len(local(param)) // len(param)
            by_shape[rows, columns, param.dtype, param.device].append((param, here))
    return [_Stack(entries, rows, columns) for (rows, columns, *_), entries in by_shape.items()] + apart


def _fused_adamw(groups: list[dict[str, Any]], params: MuonParams) -> torch.optim.AdamW:
    others = params.others
    return torch.optim.AdamW(groups, lr=others.lr, betas=others.betas, eps=others.eps, fused=True)
