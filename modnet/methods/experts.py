"""``run: route`` on the experts of a trained network: concentrate the load, prune, grow (ModuleFormer)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Metrics
from modnet.errors import RequestError
from modnet.evaluation.accuracy import evaluating, measure
from modnet.layers.routers import ExpertChoiceGate
from modnet.methods.base import NETWORK, Inputs, Kept
from modnet.methods.supervised import TRACK, WholeMethod, WholeNetwork
from modnet.recipe.experts import Concentrate, Grow, OfExperts, Prune
from modnet.surgery.experts import Place, chosen, grown, hold_old, mixtures, pruned, released, reweighted, usage


class OnExperts(WholeMethod):
    """What these methods share: the network of an earlier stage, changed, then trained as a whole."""

    def __init__(self, stage: OfExperts, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.given = inputs.network(stage.from_, self.dataset, self.key)
        self.key = self.key.fold(inputs.keys[stage.from_])
        if self.given.takes is not None and not self.dataset.port.fits(self.given.takes):
            raise RequestError(
                f"{stage.from_!r} takes {self.given.takes}, but data {stage.data!r} is {self.dataset.port}; "
                "give both windows or images of one size"
            )

    def scores(self, chain: Chain) -> Metrics:
        """What a network scores on val; nothing in a plan."""
        if self.inputs.device.type == "meta":
            return {self.dataset.score: math.nan}
        return measure(chain, self.dataset.val, self.dataset).as_dict()

    def used(self, chain: Chain) -> dict[Place, Tensor]:
        """The share of val's choices that each expert gets; in a plan all get as many."""
        if self.inputs.device.type == "meta":
            counts = {place: part.count for place, part in mixtures(chain).items()}
            return {place: torch.full((count,), 1 / count, device="cpu") for place, count in counts.items()}
        with evaluating(chain):
            return {place: share.clone() for place, share in usage(chain, self.dataset.val, self.dataset).items()}

    def told(self, metrics: Metrics) -> str:
        """The score of this data, in words."""
        score = self.dataset.score
        return f"{metrics[score]:.4f} bits a byte" if score == "bits_per_byte" else f"{metrics[score]:.2f} %"


def listed(shares: Mapping[Place, Tensor]) -> dict[str, list[float]]:
    """Shares by mixture, as plain data."""
    return {f"{position}.{name}": [round(v, 5) for v in share.tolist()] for (position, name), share in shares.items()}


class Concentration(OnExperts):
    """``method: concentrate``: fine-tuning that rewards few experts for carrying the load."""

    def __init__(self, stage: Concentrate, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.chain = reweighted(self.given, mutual_information=0.0, concentration=stage.weight)

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network, and how its load lies on val."""
        return Kept({NETWORK: self.chain}, {"load": listed(self.used(self.chain))})


class Pruning(OnExperts):
    """``method: prune``: the experts used least on val go."""

    def __init__(self, stage: Prune, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        parts = mixtures(self.given)
        if any(isinstance(part.gate, ExpertChoiceGate) for part in parts.values()):
            raise RequestError("router expert-choice gives all experts as many tokens: none is used less than others")
        shares = self.used(self.given)
        kept = {place: chosen(shares[place], parts[place].top_k, stage.keep, stage.usage) for place in parts}
        self.chain = pruned(self.given, kept, stage.rows).to(inputs.device)
        self.facts: dict[str, Any] = {
            "load": listed(shares),
            "kept": {f"{position}.{name}": experts for (position, name), experts in kept.items()},
            "unpruned_val": self.scores(self.given),
            "pruned_val": self.scores(self.chain),
        }
        left, there = sum(map(len, kept.values())), sum(part.count for part in parts.values())
        before, after = (self.told(self.facts[name]) for name in ("unpruned_val", "pruned_val"))
        inputs.say(f"kept {left} of {there} experts; on val {before} before and {after} after")

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network, which experts it kept, and what pruning alone cost on val."""
        return Kept({NETWORK: self.chain}, self.facts)


class GrowObjective(WholeNetwork):
    """The base loss, and the squared router rows of new experts."""

    def __init__(self, chain: Chain, smoothing: float, rows: list[Tensor], penalty: float) -> None:
        super().__init__(chain, smoothing)
        self.rows, self.penalty = rows, penalty

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """The loss of the one track, a scalar."""
        found = super().forward(batch, ctx)
        squared = sum((row.square().sum() for row in self.rows), start=found[TRACK].new_zeros(()))
        return {TRACK: found[TRACK] + self.penalty * squared}


class Growth(OnExperts):
    """``method: grow``: new experts learn beside the old ones, which stay as they are."""

    def __init__(self, stage: Grow, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.grow = stage
        self.chain = grown(self.given, stage.experts, self.key).to(inputs.device)
        self.rows = hold_old(self.chain, stage.experts)
        self.counted = super().flops()  # while the old experts stand still

    def jobs(self) -> list[Job]:
        """One job that trains the new experts and their router rows."""
        objective = GrowObjective(self.chain, self.stage.label_smoothing, self.rows, self.grow.penalty)
        return [self.job(TRACK, objective, [self.track(TRACK, self.chain)], self.validate)]

    def flops(self) -> dict[str, float]:
        """The network forward and backward, without the old experts' gradients."""
        return self.counted

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network, and the share of val's choices that goes to new experts."""
        chain = released(self.chain)
        shares, added = self.used(chain), self.grow.experts
        new = sum(float(share[-added:].sum()) for share in shares.values()) / len(shares)
        self.inputs.say(f"{100 * new:.1f} % of the choices on val go to the {added} new experts of each mixture")
        return Kept({NETWORK: chain}, {"load": listed(shares), "new_share": new})
