"""EMoE: a dense MLP cut into experts by clustering its keys (arXiv 2310.10908), and put together again."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.layers.block import Block
from modnet.layers.mlp import MLP
from modnet.layers.moe import Experts, MoEBlock
from modnet.randomness import Key
from modnet.recipe.routing import Split
from modnet.surgery.conversion import converted, expert_blocks
from modnet.surgery.heads import joined_heads, split_heads

ROUNDS, FACTOR = 100, 4096
ALL_EXCHANGED, BEST_EXCHANGED = 64, 512  # keys: an exchange costs the square of their number


def split(chain: Chain, to: Split, key: Key) -> Chain:
    """The network with its MLPs' hidden units clustered into experts; nothing is copied and nothing added.

    With ``part: attention`` the heads of attention are the experts (:func:`modnet.surgery.heads.split_heads`). With
    router avg-k and ``top_k`` equal to ``experts`` it computes what the dense network does. Raises RequestError where
    hidden units do not divide into the experts, and as :func:`converted` does.
    """
    if to.part == "attention":
        return split_heads(chain, to, key)
    return converted(chain, to.placement, lambda block, number: _block(block, to, key.fold("block", number)))


def _block(block: Block, to: Split, key: Key) -> MoEBlock:
    labels = balanced_clusters(block.mlp.fc1.weight.detach(), to.experts, key.fold("clusters"))
    with key.fold("router").forked():
        made = MoEBlock.in_place_of(
            block, len(labels) // to.experts, to.experts, to.top_k, to.router.model_dump(mode="json")
        )
    divide(made.moe.experts, block.mlp, labels, to.top_k)
    return made


@torch.no_grad()
def divide(experts: Experts, mlp: MLP, labels: Tensor, top_k: int) -> None:
    """Give every expert the hidden units of its label (H,), in ascending order, and 1/K of the output's bias."""
    order = units_of(labels, len(experts.fc1.weight))
    experts.fc1.weight.copy_(mlp.fc1.weight[order])
    experts.fc1.bias.copy_(mlp.fc1.bias[order])
    experts.fc2.weight.copy_(mlp.fc2.weight.T[order].mT)
    experts.fc2.bias.copy_((mlp.fc2.bias / top_k).expand_as(experts.fc2.bias))


def units_of(labels: Tensor, experts: int) -> Tensor:
    """The hidden units of each label, int64 (E, H/E), ascending; raises ValueError where sizes differ."""
    if labels.bincount(minlength=experts).unique().numel() != 1:
        raise ValueError("every expert must get equally many hidden units")
    return labels.argsort(stable=True).view(experts, -1)


def balanced_clusters(keys: Tensor, clusters: int, key: Key) -> Tensor:
    """A label from 0 for every key (H, D): clusters of exactly H / clusters keys, near in direction.

    k-means on the normalised keys in which the assignment to centres is the best of all that give each centre equally
    many, from several k-means++ starts; of not too many keys, pairs are exchanged while that helps. The labels of the
    least inertia are kept. Raises RequestError if sizes do not divide. Source: EMoE, section 3.1 (balanced k-means on
    L2-normalised keys).
    """
    if len(keys) % clusters:
        raise RequestError(f"{len(keys)} hidden units do not divide into {clusters} experts of equal size")
    if keys.is_meta:  # a plan: no key is near another
        return torch.arange(len(keys), device="cpu") * clusters // len(keys)
    points = F.normalize(keys.double(), dim=1).cpu().numpy()
    starts = max(2, min(50, FACTOR // len(points)))
    found = [_clustered(points, clusters, key.fold("start", start)) for start in range(starts)]
    if len(points) <= ALL_EXCHANGED:
        found = [_exchanged(points, labels) for labels in found]
    best = min(found, key=lambda labels: inertia(points, labels))
    return torch.from_numpy(_exchanged(points, best) if len(points) <= BEST_EXCHANGED else best)


def inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """The sum of squared distances of points (H, D) to the mean of their cluster."""
    means = _means(points, labels)
    return float(((points - means[labels]) ** 2).sum())


def _means(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of every cluster, by label; clusters are of equal size."""
    order = labels.argsort(kind="stable")
    means: np.ndarray = points[order].reshape(labels.max() + 1, -1, points.shape[1]).mean(1)
    return means


def _clustered(points: np.ndarray, clusters: int, key: Key) -> np.ndarray:
    """Labels from one start: assign and average in turn, until no label changes."""
    centres = _spread_out(points, clusters, key)
    labels = _assigned(points, centres)
    for _ in range(ROUNDS):
        new = _assigned(points, _means(points, labels))
        if (new == labels).all():
            break
        labels = new
    return labels


def _exchanged(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels after exchanging pairs of points between clusters, best first, until none lowers the inertia."""
    labels, apart = labels.copy(), _distances(points, points)
    each = len(points) // (labels.max() + 1)
    for _ in range(len(points)):
        to = points @ _means(points, labels).T * each  # products with every cluster's sum
        own, across = to[np.arange(len(points)), labels], to[:, labels]  # across[j, i]: of point j with i's cluster
        gain = across + across.T - own[:, None] - own[None] + apart
        gain[labels[:, None] == labels[None]] = 0
        i, j = divmod(int(gain.argmax()), len(points))
        if gain[i, j] < 1e-9:
            break
        labels[i], labels[j] = labels[j], labels[i]
    return labels


def _assigned(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The labels of the least sum of squared distances under which every centre gets equally many points."""
    places = np.repeat(
        _distances(points, centres), len(points) // len(centres), axis=1
    )  # a column for each place at a centre
    _, columns = linear_sum_assignment(places)
    labels: np.ndarray = columns // (len(points) // len(centres))
    return labels


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances (H, C), none below 0."""
    squares: np.ndarray = (points**2).sum(1)[:, None] + (centres**2).sum(1)[None] - 2 * points @ centres.T
    return squares.clip(min=0)


def _spread_out(points: np.ndarray, clusters: int, key: Key) -> np.ndarray:
    """Centres drawn from the points by k-means++ (Arthur and Vassilvitskii 2007)."""
    chosen = [int(key.fold(0).number() * len(points))]
    while len(chosen) < clusters:
        nearest = _distances(points, points[chosen]).min(1)
        if nearest.max() < 1e-12:  # fewer different points than clusters
            nearest = np.ones(len(points))
        share = nearest.cumsum() / nearest.sum()
        chosen.append(int(np.searchsorted(share, key.fold(len(chosen)).number(), side="right")))
    return points[chosen]


def merged(chain: Chain) -> Chain:
    """The dense network of one that was split: its experts side by side in one MLP, whatever they have learned.

    Heads that are experts become one attention again. It computes what the split network does where every token goes
    to all experts with weight 1. Raises RequestError
    for experts that are no parts of one MLP: those whose router weighs them.
    """
    chain = joined_heads(chain)
    leaves = list(chain.leaves)
    for at, block in expert_blocks(chain).items():
        if not block.moe.gate.by_keys:
            raise RequestError(f"the experts of leaf {at} are weighted by their router, so that no one MLP equals them")
        leaves[at] = _dense(block)
    return Chain(leaves, chain.bounds, chain.shared_part)


@torch.no_grad()
def _dense(block: MoEBlock) -> Block:
    experts, shape = block.moe.experts, dict(block.arguments)
    hidden, width = experts.fc1.bias.numel(), shape["width"]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # rounding, by which a block's size would be one less
        ratio = math.nextafter(ratio, math.inf)
    for name in ("hidden", "experts", "top_k", "router", "activation"):
        shape.pop(name)
    made = Block(mlp_ratio=ratio, **shape).to(experts.fc1.weight.device)
    for part in ("norm1", "attn", "norm2"):
        getattr(made, part).load_state_dict(getattr(block, part).state_dict())
    made.mlp.fc1.weight.copy_(experts.fc1.weight.flatten(0, 1))
    made.mlp.fc1.bias.copy_(experts.fc1.bias.flatten())
    made.mlp.fc2.weight.copy_(experts.fc2.weight.mT.flatten(0, 1).T)
    made.mlp.fc2.bias.copy_(experts.fc2.bias.mean(0) * block.moe.top_k)
    return made
