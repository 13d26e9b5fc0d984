"""Smaller circuits: mediators that are left out, links that are cut (NAC, arXiv 2210.08031). Nothing is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.nac.circuit import Propagator, ReadIn, ReadOut
from modnet.layers.nac.kernel import distances
from modnet.layers.nac.latents import Latents

ROWS = {"signatures": 0, "states": 0, "codes": -2}
"""The axis of mediators in each of the latents' tensors."""


def latents_in(network: Chain) -> Latents:
    """The latents of a circuit; raises RequestError for a network of another kind."""
    if not isinstance(network.shared_part, Latents):
        raise RequestError("this network is no Neural Attentive Circuit: it has no mediators and no links to look at")
    return network.shared_part


def with_mediators(network: Chain, kept: Tensor) -> Chain:
    """A circuit with these mediators alone, int64 (n,), in the order given; all weights are shared by all of them.

    Raises RequestError for a network that is no circuit, or for none kept.
    """
    inputs, _, outputs = latents_in(network).counts
    if not len(kept):
        raise RequestError("a circuit without mediators computes nothing; keep one at least")
    described = copy.deepcopy(describe(network))
    described["shared"]["counts"] = [inputs, len(kept), outputs]
    for leaf, entry in zip(network.leaves, described["leaves"], strict=True):
        if isinstance(leaf, ReadIn):
            entry["slots"] = inputs + len(kept)
        elif isinstance(leaf, Propagator | ReadOut):
            entry["mediators"] = len(kept)
    smaller = rebuild(described)
    state = network.state_dict()
    for name, axis in ROWS.items():
        key = f"shared.mediator.{name}"
        if key in state:
            state[key] = state[key].index_select(axis % state[key].ndim, kept)
    smaller.load_state_dict(state)
    return smaller.train(network.training)


def with_nearest_links(network: Chain, share: float) -> Chain:
    """A circuit that keeps this share of the propagators' links, those of the smallest distances.

    A link counts that the truncation leaves open now, a mediator's to itself included. Truncation moves nearer.
    """
    latents = latents_in(network)
    smaller = network.cloned()
    first = next(leaf for leaf in smaller.leaves if isinstance(leaf, Propagator))
    heard = latents.signatures(("input", "mediator") if first.hears != "never" else ("mediator",))
    distance = distances(latents.signatures(("mediator",)), heard).detach()
    kept = first.kernel.kept(distance)
    open_now = (distance if kept is None else distance[kept]).sort().values
    limit = float(open_now[max(0, round(share * len(open_now)) - 1)])
    for leaf in smaller.leaves:
        if isinstance(leaf, Propagator):
            leaf.kernel.truncation = limit
            options: dict[str, Any] = dict(leaf.arguments.get("kernel") or {})
            leaf.arguments["kernel"] = {**options, "truncation": limit}
    return smaller


def open_links(network: Chain) -> int:
    """How many links between modules the first propagator's kernel leaves open."""
    latents = latents_in(network)
    first = next(leaf for leaf in network.leaves if isinstance(leaf, Propagator))
    heard = latents.signatures(("input", "mediator") if first.hears != "never" else ("mediator",))
    with torch.no_grad():
        return int(first.kernel.log(latents.signatures(("mediator",)), heard).isfinite().sum())
