"""Optimizers of a track: parameter groups by name, and optimizer state keyed by parameter name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain
from modnet.engine.divided import alike, is_divided, local, placed
from modnet.engine.muon import Muon
from modnet.recipe import training
from modnet.registry import Params

# timm's names, and a circuit's: its positions, and what its modules are
NO_DECAY = ("bias", "cls_token", "reg_token", "dist_token", "pos_embed", "grid", "codes", "signatures", "states")


EMBEDDINGS = ("cls_token", "reg_token", "dist_token", "pos_embed")


def decays(name: str, parameter: Tensor, params: training.AdamW | None = None) -> bool:
    """Whether weight decay applies: matrices only, no vectors, biases, added tokens or position tables.

    The quirks of ``params`` let tokens and tables, or everything, decay.
    """
    last = name.rpartition(".")[2]
    if params is not None and (params.quirk_decay_all or (params.quirk_decay_embeddings and last in EMBEDDINGS)):
        return True
    return parameter.ndim > 1 and last not in NO_DECAY


def trainable(chain: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take a gradient, by name, each storage once."""
    return {name: p for name, p in chain.named_parameters() if p.requires_grad}


def groups(
    named: Mapping[str, nn.Parameter], lr: float, weight_decay: float, params: training.AdamW | None = None
) -> list[dict[str, Any]]:
    """One group with weight decay and one without, each with the ``base_lr`` that a schedule multiplies.

    Fused steps take parameters that are divided over processes and others only apart: each kind has its groups.
    """
    decayed = [p for name, p in named.items() if decays(name, p, params)]
    rest = [p for name, p in named.items() if not decays(name, p, params)]
    made = [
        {"params": [of[place] for place in places], "weight_decay": decay, "lr": lr, "base_lr": lr}
        for of, decay in ((decayed, weight_decay), (rest, 0.0))
        for places in alike(of)
    ]
    return made


def adamw(params: training.AdamW, chain: Chain) -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov and Hutter 2019) over what is trainable in a chain."""
    made = groups(trainable(chain), params.lr, params.weight_decay, params)
    return torch.optim.AdamW(made, lr=params.lr, betas=params.betas, eps=params.eps, fused=True)


def sgd(params: training.SGD, chain: Chain) -> torch.optim.Optimizer:
    """Fused SGD with momentum over what is trainable in a chain."""
    named = trainable(chain)
    made = groups(named, params.lr, params.weight_decay)
    way = {"foreach" if is_divided(named.values()) else "fused": True}  # the fused step knows no DTensors
    return torch.optim.SGD(made, lr=params.lr, momentum=params.momentum, nesterov=params.nesterov, **way)


def muon(params: training.Muon, chain: Chain) -> torch.optim.Optimizer:
    """Muon on the matrices that the leaves declare, AdamW on the rest (Jordan et al. 2024)."""
    named, declared = trainable(chain), declared_matrices(chain)
    matrices = {named[name]: count for name, count in declared.items() if name in named}
    rest = {name: p for name, p in named.items() if name not in declared}
    return Muon(matrices, groups(rest, params.others.lr, params.others.weight_decay, params.others), params)


def state_numbers(params: Params, chain: Chain) -> int:
    """How many numbers an optimizer keeps beside what is trainable in a chain; two for each where it is not known."""
    sizes = {name: p.numel() for name, p in trainable(chain).items()}
    match params:
        case training.SGD(momentum=momentum):
            return sum(sizes.values()) if momentum else 0
        case training.Muon():
            matrices = declared_matrices(chain).keys()
            return sum(size if name in matrices else 2 * size for name, size in sizes.items())
    return 2 * sum(sizes.values())


def declared_matrices(chain: Chain) -> dict[str, int]:
    """Parameter name in the chain to the number of matrices that its leaf declares in it."""
    return {
        f"{position}.{name}": count
        for position, leaf in enumerate(chain.leaves)
        for name, count in leaf.matrices().items()
    }


def state_tensors(optimizer: torch.optim.Optimizer, chain: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as ``parameter name/entry`` to tensor."""
    return {
        f"{name}/{entry}": value
        for name, p in trainable(chain).items()
        for entry, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def load_state_tensors(optimizer: torch.optim.Optimizer, chain: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Put back what :func:`state_tensors` gave; the parameters whose state does not fit are returned, left as they are.

    Existing tensors are written in place (Muon's are views into stacks); others are created.
    """
    left, named = [], trainable(chain)
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        states[name][entry] = value
    for name, state in states.items():
        p = named.get(name)
        if p is None or any(value.ndim and value.shape != p.shape for value in state.values()):
            left.append(name)
            continue
        own = optimizer.state[p]
        for entry, value in state.items():
            value = placed(value, p) if value.ndim else value.to(p.device)
            if entry in own:
                local(own[entry]).copy_(local(value))
            else:
                own[entry] = value.clone()
    return left
