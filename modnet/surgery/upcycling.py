"""Sparse upcycling: experts that start as copies of a dense block's MLP (Komatsuzaki et al. 2022, arXiv 2212.05055)."""

from __future__ import annotations

import torch
from torch import Tensor

from modnet.chain import Chain
from modnet.layers.block import Block
from modnet.layers.mlp import MLP
from modnet.layers.moe import Experts, MoEBlock
from modnet.randomness import Key
from modnet.recipe.routing import Upcycle
from modnet.surgery.conversion import converted


def upcycled(chain: Chain, to: Upcycle, key: Key) -> Chain:
    """The network with copies of its MLPs as experts, and fresh routers.

    It computes what the dense network does where the router's weights add up to 1, nothing is dropped, and neither
    ``noise`` nor ``reinit`` changes the copies. The more hidden units are cut into ``fragments``, the larger the
    weights: a token finds whole copies, whose parts it must add up. Raises RequestError as :func:`converted` does.
    """
    return converted(chain, to.placement, lambda block, number: _block(block, to, key.fold("block", number)))


def _block(block: Block, to: Upcycle, key: Key) -> MoEBlock:
    hidden = block.mlp.fc1.out_features // to.fragments
    router = to.router.model_dump(mode="json")
    if to.fragments > 1 and "scale" in router:
        router["scale"] *= to.fragments
    with key.fold("router").forked():
        made = MoEBlock.in_place_of(block, hidden, to.experts, to.top_k, router)
    if to.fragments > 1:
        made.moe.gate.tie(to.fragments)
    fill(made.moe.experts, block.mlp, to.experts // to.fragments, to.fragments)
    if to.noise or to.reinit:
        _vary(made.moe.experts, to.noise, to.reinit, key)
    return made


@torch.no_grad()
def fill(experts: Experts, mlp: MLP, copies: int, fragments: int = 1) -> None:
    """Load copies of an MLP, each cut along its hidden units into fragments that stand side by side.

    Every fragment gets its share of the output's bias, so that the fragments of a copy add up to the MLP.
    """
    w1, b1 = mlp.fc1.weight.unflatten(0, (fragments, -1)), mlp.fc1.bias.unflatten(0, (fragments, -1))
    w2 = mlp.fc2.weight.unflatten(1, (fragments, -1)).movedim(1, 0)
    b2 = (mlp.fc2.bias / fragments).expand(fragments, -1)
    parts = (experts.fc1.weight, w1), (experts.fc1.bias, b1), (experts.fc2.weight, w2), (experts.fc2.bias, b2)
    for target, source in parts:
        target.copy_(source.repeat(copies, *[1] * (source.ndim - 1)))


@torch.no_grad()
def _vary(experts: Experts, noise: float, reinit: float, key: Key) -> None:
    """Make copies differ: relative noise, and hidden units drawn afresh with the mean and deviation of the others."""
    count, hidden = experts.fc1.bias.shape
    with key.fold("vary").forked():
        fresh = torch.rand(count, hidden) < reinit
        for weight, units in ((experts.fc1.weight, fresh[:, :, None]), (experts.fc2.weight, fresh[:, None, :])):
            weight.copy_(torch.where(units, _like(weight), weight + noise * _deviation(weight)))


def _deviation(weight: Tensor) -> Tensor:
    return torch.randn_like(weight) * weight.std()


def _like(weight: Tensor) -> Tensor:
    return weight.mean() + _deviation(weight)
