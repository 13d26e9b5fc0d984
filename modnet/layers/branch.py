"""Several chains side by side at the end of a network: the members of an ensemble, or several heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from modnet.chain import Chain, Module, Pass, Port, unique_parameters
from modnet.errors import RequestError


class Branch(Module):
    """Chains that all see the same input, with a declared merge of what they give.

    ``merge``: ``mean`` of the logits, which all members must give in the same shape, or ``none``, a list with one entry
    a chain (its port is ``branches(of)``). Losses and statistics of chain i are kept as ``branch{i}.NAME``. Raises
    RequestError where the chains take or give what cannot stand side by side, ValueError if they share parameters.
    """

    role = "head"

    def __init__(self, chains: Sequence[Chain], merge: Literal["mean", "none"]) -> None:
        super().__init__()
        if not chains:
            raise RequestError("a branch needs at least one chain")
        if len(unique_parameters(*chains)) != sum(len(unique_parameters(chain)) for chain in chains):
            raise ValueError("the chains of a branch own their parameters; put what they share in front of the branch")
        self.merge = merge
        self.branches = nn.ModuleList(chains)
        self.takes = _common("take", [chain.takes for chain in chains])
        if merge == "mean":
            self.gives = _common("give", [chain.gives for chain in chains])
            if self.gives is None or self.gives.kind != "logits":
                raise RequestError(f"merge: mean averages logits, not {self.gives}; use merge: none")
        else:
            self.gives = Port.of("branches", of=[chain.gives for chain in chains])

    def forward(self, x: Any, ctx: Pass) -> Any:
        given = []
        for i, chain in enumerate(self.branches):
            own = ctx.enter("leaf", ctx.leaf, "branch", i)
            given.append(chain(x, own))
            ctx.losses |= {f"branch{i}.{name}": loss for name, loss in own.losses.items()}
            ctx.stats |= {f"branch{i}.{name}": value for name, value in own.stats.items()}
        return torch.stack(given).mean(dim=0) if self.merge == "mean" else given

    def matrices(self) -> dict[str, int]:
        """Those of every chain's leaves."""
        return {
            f"branches.{i}.{position}.{name}": count
            for i, chain in enumerate(self.branches)
            if isinstance(chain, Chain)
            for position, leaf in enumerate(chain.leaves)
            for name, count in leaf.matrices().items()
        }


def _common(verb: str, ports: Sequence[Port | None]) -> Port | None:
    """The port that says most, after checking that every two fit; None if none says anything."""
    said = [port for port in ports if port is not None]
    odd = next((port for port in said if not said[0].fits(port)), None)
    if odd is not None:
        raise RequestError(f"the chains of a branch must {verb} the same, but one is {said[0]}, another {odd}")
    return max(said, key=lambda port: sum(value is not None for _, value in port.dims), default=None)
