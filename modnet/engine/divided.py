"""Tensors of which every process holds a part: torch's DTensor, seen as what is here and as the whole.

A tensor that is not divided is both.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


Part = tuple[str, Tensor, Tensor]
"""A name, what is here of a tensor, and one that is divided likewise."""


def divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether other processes have parts of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # half a second to import; without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What is here of a tensor, on its storage."""
    if not divided(tensor):
        return tensor
    with torch.no_grad():
        found: Tensor = tensor.to_local()
    return found


def whole(tensor: Tensor, like: Tensor) -> Tensor:
    """All of a tensor that is divided as ``like`` is, by what is here of it; every process takes part."""
    if not divided(like):
        return tensor
    if not divided(tensor):
        tensor = type(like).from_local(
            tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
        )
    with torch.no_grad():
        found: Tensor = tensor.full_tensor()
    return found


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in every process, divided as ``like`` is and on its device; nothing is sent."""
    tensor = tensor.to(like.device)
    if not divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def is_divided(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors is."""
    return any(divided(tensor) for tensor in tensors)


def splits(tensor: Tensor, rows: int) -> bool:
    """Whether a tensor is divided so that runs of ``rows`` along its first axis do not stay together."""
    if not divided(tensor):
        return False
    parts = math.prod(tensor.device_mesh.size(d) for d, how in enumerate(tensor.placements) if how.is_shard(0))
    return -(-len(tensor) // parts) % rows != 0


def alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The places of tensors that one operation on many may take together: divided among the same processes, or not."""
    found: dict[Any, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        found[tensor.device_mesh if divided(tensor) else None].append(place)
    return list(found.values())


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together; every process takes part if some are divided."""
    norms = []
    for places in alike(tensors):
        norm = get_total_norm([tensors[place] for place in places])
        norms.append(norm.full_tensor() if divided(norm) else norm)
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip(params: Sequence[Tensor], largest: float) -> None:
    """Scale all gradients so that their norm together is at most ``largest``."""
    params = [p for p in params if p.grad is not None]
    if not params:
        return
    norm = total_norm([p.grad for p in params if p.grad is not None])
    for places in alike(params):
        clip_grads_with_norm_([params[place] for place in places], largest, norm)
