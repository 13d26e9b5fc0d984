"""``run: route, method: lora``: low-rank experts beside a frozen network (LoRA-Mixer, PEGO)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modnet.chain import Chain, Pass, parameter_count
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Metrics
from modnet.errors import RequestError
from modnet.layers.adapters import see
from modnet.layers.lora import Adapted
from modnet.methods.base import NETWORK, Inputs, Kept
from modnet.methods.supervised import TRACK, WholeMethod, WholeNetwork
from modnet.recipe.lora import Lora
from modnet.surgery.adapting import adapt
from modnet.surgery.lora import Stacks, adapted, folded, load_adapters, stacks_of


class LoraObjective(WholeNetwork):
    """The base loss, with the adapters' own losses, and the distance to adapters that were given."""

    def __init__(self, chain: Chain, smoothing: float, given: dict[int, Tensor], preserve: float) -> None:
        super().__init__(chain, smoothing)
        self.given, self.preserve = given, preserve

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """The loss of the one track, a scalar."""
        found = super().forward(batch, ctx)
        if not self.preserve:
            return found
        moved = [(p - self.given[id(p)]).square().sum() for p in self.parameters() if id(p) in self.given]
        return {TRACK: found[TRACK] + self.preserve * torch.stack(moved).sum()}


class LoraExperts(WholeMethod):
    """Adapters learn on a frozen network; those that other stages or files give are its experts."""

    def __init__(self, stage: Lora, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.lora = stage
        self.key = self.key.fold(inputs.keys[stage.from_])
        given = self.adapters()
        experts = sum(next(iter(stacks.values())).shape[0] for stacks in given) or stage.experts
        spec = self.spec(experts, self.rank(given))
        self.chain = adapted(self.network(), spec, self.key, stage.head).to(inputs.device)
        if given:
            load_adapters(self.chain, given, freeze=stage.learn == "router")
        learned = sum(p.numel() for p in self.chain.parameters() if p.requires_grad)
        inputs.say(
            f"{experts} adapters of rank {spec['rank']} on {', '.join(stage.targets)} of each block; "
            f"{learned:,} of {parameter_count(self.chain):,} parameters learn"
        )

    def network(self) -> Chain:
        """The earlier stage's network, for the images and classes of this stage's data."""
        stage, inputs, classes = self.lora, self.inputs, len(self.dataset.classes)
        earlier = inputs.stored(stage.from_, NETWORK)
        made, changes = adapt(earlier, self.dataset.port, classes, stage.on_mismatch, self.key)
        for change in changes:
            inputs.say(change)
        return see(made.to(inputs.device), self.dataset.mean, self.dataset.std)

    def adapters(self) -> list[Stacks]:
        """The adapters of the stages and files that are named; raises RequestError where there are none."""
        states = {name: self.inputs.stored(name, NETWORK).state_dict() for name in self.lora.adapters}
        for name in self.lora.files:
            path = Path(name).expanduser()
            if not path.is_file():
                raise RequestError(f"files: there is no file {path}; give the safetensors of a network with adapters")
            states[name] = load_file(path)
        found = {name: stacks_of(state) for name, state in states.items()}
        empty = [name for name, stacks in found.items() if not stacks]
        if empty:
            raise RequestError(
                f"{empty[0]!r} holds no adapters; name stages with method: lora (without fold), or their network files"
            )
        return list(found.values())

    def rank(self, given: list[Stacks]) -> int:
        """The rank of the adapters: that of the given ones, if there are some."""
        ranks = {stacks[place].shape[1] for stacks in given for place in stacks if place[2] == "a"}
        if len(ranks) > 1:
            raise RequestError(f"adapters of ranks {', '.join(map(str, sorted(ranks)))} cannot be mixed; give one rank")
        return next(iter(ranks), self.lora.rank)

    def spec(self, experts: int, rank: int) -> dict[str, Any]:
        """What the adapted leaves are built by, as plain values."""
        stage = self.lora
        routed = stage.mix == "routed"
        return {
            "targets": list(stage.targets),
            "experts": experts,
            "rank": rank,
            "scale": 1.0 if stage.alpha is None else stage.alpha / rank,
            "top_k": min(stage.top_k, experts) if routed else None,
            "hard_soft": stage.train == "hard-soft",
            "balance": stage.balance if routed else 0.0,
            "entropy": stage.entropy if routed else 0.0,
            "orthogonal": stage.orthogonal,
            "norm": stage.norm,
        }

    def jobs(self) -> list[Job]:
        """One job that trains adapters, routers and head."""
        tables = {
            id(table): table.detach().clone()
            for leaf in self.chain.leaves
            if isinstance(leaf, Adapted)
            for part in leaf.adapters.values()
            for table in (part.a, part.b)
            if isinstance(table, Tensor)
        }
        objective = LoraObjective(self.chain, self.stage.label_smoothing, tables, self.lora.preserve)
        return [self.job(TRACK, objective, [self.track(TRACK, self.chain)], self.validate)]

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network with its adapters, or with these added into its weights."""
        learned = sum(p.numel() for p in self.chain.parameters() if p.requires_grad)
        chain = folded(self.chain) if self.lora.fold else self.chain
        return Kept({NETWORK: chain}, {"learned_parameters": learned})
