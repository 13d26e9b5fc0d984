"""What the methods that train modules apart share: frozen surroundings, one track a module, fused or one by one.

All modules of a fused run share one pass through the frozen front parts. Each module has its own loss, its own
optimizer and its own random draws, so fused training gives the same weights as one module after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Metrics
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cost import training_flops
from modnet.methods.base import Kept, Method, module_name


class ModuleObjective(nn.Module):
    """A loss for each of several modules that stand, one at a time, in the place of a frozen host's module."""

    def __init__(self, host: Chain, modules: Mapping[int, Chain]) -> None:
        super().__init__()
        self.places = sorted(modules)
        self.front = nn.ModuleList(host[i].frozen() for i in range(max(self.places)))
        self.tails = nn.ModuleDict({str(i): host[i + 1 :].frozen() for i in self.places})
        self.learners = nn.ModuleDict({str(i): modules[i] for i in self.places})

    def inputs(self, x: Tensor) -> list[Tensor]:
        """What enters each of the host's modules, up to the last one that is trained; no gradient."""
        flowing = [x]
        with torch.no_grad():
            for part in self.front:
                flowing.append(part(flowing[-1]))
        return flowing

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """A scalar loss for every module's track."""
        flowing = self.inputs(batch.x)
        losses = {}
        for i in self.places:
            own = ctx.enter("module", i)
            given = self.learners[str(i)](flowing[i], own)
            losses[module_name(i)] = sum(own.losses.values(), self.loss(i, given, flowing, batch))
        return losses

    def loss(self, i: int, given: Tensor, flowing: list[Tensor], batch: Batch) -> Tensor:
        """The loss of module ``i``, which gave ``given`` for ``flowing[i]``."""
        raise NotImplementedError


class ModulewiseMethod(Method):
    """A method with one track for each module; subclasses set ``host`` and ``learners`` and give the objective."""

    host: Chain
    learners: list[Chain]
    fused: bool

    def objective(self, places: list[int]) -> ModuleObjective:
        """The objective of the modules at some places."""
        raise NotImplementedError

    def jobs(self) -> list[Job]:
        """One job for all modules if fused, else a job for each."""
        every = list(range(len(self.learners)))
        return [self._job(places) for places in ([every] if self.fused else [[i] for i in every])]

    def _job(self, places: list[int]) -> Job:
        tracks = [self.track(module_name(i), self.learners[i]) for i in places]
        name = "modules" if self.fused else module_name(places[0])
        return self.job(name, self.objective(places), tracks, lambda: self.validate(places))

    def hybrid(self, i: int) -> Chain:
        """The host with module ``i`` in its place, for measuring."""
        return self.host[:i] + self.learners[i] + self.host[i + 1 :]

    def validate(self, places: list[int]) -> dict[str, Metrics]:
        """Accuracy of every hybrid on val: the number that foretells assembly."""
        return {module_name(i): measure(self.hybrid(i), self.dataset.val, self.dataset).as_dict() for i in places}

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """Every module with its stitches, and each hybrid's accuracy on val."""
        names = [module_name(i) for i in range(len(self.learners))]
        facts: dict[str, Any] = {"modules": len(names), "hybrid_val_top1": [metrics[name]["top1"] for name in names]}
        return Kept(dict(zip(names, self.learners, strict=True)), facts)

    def flops(self) -> dict[str, float]:
        """The modules forward and backward; the host's front, once if fused, and its tail behind every module."""
        port, last = self.dataset.port, len(self.learners) - 1
        student = sum(training_flops(learner, learner.takes or port) for learner in self.learners)
        fronts = [self.host[:last]] if self.fused else [self.host[:i] for i in range(1, last + 1)]
        tails = [self.host[i + 1 :] for i in range(last)]
        passes = sum(training_flops(front.frozen(), port) for front in fronts if front)
        passes += sum(training_flops(tail.frozen(), tail.takes or port, input_grad=True) for tail in tails)
        return {"student": student, "passes": passes}
