"""What training keeps in memory, counted without computing: weights, gradients, optimizer and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Saved = dict[int, tuple[Any, int]]


def activation_bytes(loss: Callable[[int], Tensor], parts: nn.Module, batch: int) -> int:
    """Bytes that autograd saves for the backward pass of ``batch`` samples, parameters aside.

    ``loss(n)`` computes the loss of n samples on the meta device, by ``parts``. What grows with the batch is told from
    what does not by one sample and by two. Storages count once, whoever keeps them.
    """
    one, two = (_saved(loss, parts, count) for count in (1, 2))
    return one + (two - one) * (batch - 1)


def _saved(loss: Callable[[int], Tensor], parts: nn.Module, count: int) -> int:
    own = {_place(tensor) for tensor in (*parts.parameters(), *parts.buffers())}
    kept: Saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[_place(tensor)] = (storage, storage.nbytes())  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outcome = loss(count)
    del outcome
    return sum(size for place, (_, size) in kept.items() if place not in own)


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def distinct(tensors: dict[str, Tensor] | list[Tensor]) -> int:
    """How many numbers tensors hold, each storage once; on the meta device as well."""
    every = tensors.values() if isinstance(tensors, dict) else tensors
    return sum({_place(tensor): tensor.numel() for tensor in every}.values())
