"""Graphs that a circuit starts from, and signatures whose distances draw them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor

from modnet.layers.nac.kernel import distances

THRESHOLD = 0.8  # of the fit: linked pairs come nearer, others go farther

# The classical random graphs under their own names; the first of each is in use (arXiv 2210.08031, appendix).
GENERATORS: Mapping[str, Callable[..., Any]] = {
    "scale-free": nx.barabasi_albert_graph,
    "erdos-renyi": nx.erdos_renyi_graph,
    "ring-of-cliques": nx.ring_of_cliques,
    "planted-partition": nx.planted_partition_graph,
    "watts-strogatz": nx.watts_strogatz_graph,
    "grid": nx.grid_graph,
    "barbell": nx.barbell_graph,
}
_SEEDED = ("scale-free", "erdos-renyi", "planted-partition", "watts-strogatz")


def graph(name: str, seed: int, **options: Any) -> Any:
    """A networkx graph of a name in ``GENERATORS``; random ones follow from the seed alone."""
    if name in _SEEDED:
        options["seed"] = random.Random(seed)
    return GENERATORS[name](**options)


def adjacency(drawn: Any) -> Tensor:
    """The graph's symmetric 0/1 matrix, float32 (n, n), nodes in the generator's order, no loops."""
    return torch.from_numpy(nx.to_numpy_array(drawn)).float()


def path_lengths(drawn: Any) -> Tensor:
    """Lengths of shortest paths over the longest of them, float32 (n, n); 0 where there is no path."""
    place = {node: i for i, node in enumerate(drawn)}
    lengths = torch.zeros(len(place), len(place))
    for source, targets in nx.all_pairs_shortest_path_length(drawn):
        for target, length in targets.items():
            lengths[place[source], place[target]] = length
    return lengths / lengths.max().clamp_min(1)


def hinge_loss(signatures: Tensor, links: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Mean over all pairs of what linked ones are farther, and others nearer, than the threshold, which is kept."""
    distance = distances(signatures, signatures)
    linked = distance.clamp_min(threshold)
    apart = (-distance).clamp_min(-threshold)
    return torch.where(links > 0, linked, apart).mean()


def score(signatures: Tensor, links: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Share of pairs whose distance says otherwise than the graph, in [0, 1]."""
    near = (distances(signatures, signatures) < threshold).float()
    return (near - torch.eye(len(links)) - links).abs().mean()


def fit(
    initial: Tensor,
    target: Tensor,
    steps: int = 1000,
    lr: float = 1e-3,
    threshold: float = THRESHOLD,
    loss: Literal["hinge", "paths"] = "hinge",
) -> Tensor:
    """Signatures (n, S) after full-batch Adam steps towards a graph.

    ``hinge``: ``target`` is the adjacency; ``paths``: distances come to equal ``target``, the path lengths.
    Source: NAC (arXiv 2210.08031), graph priors.
    """
    signatures = initial.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([signatures], lr=lr)
    for _ in range(steps):
        if loss == "hinge":
            value = hinge_loss(signatures, target, threshold)
        else:
            value = (distances(signatures, signatures) - target).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return signatures.detach()
