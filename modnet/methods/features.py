"""Feature m2m: student module i sees the teacher's own input of module i and must give the teacher's output of it.

It needs no meta network: one pass of the teacher serves all modules. Modules stand between linear stitches, so that
at assembly two neighbouring stitches fold into one matrix. The last module learns the logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.evaluation.cost import training_flops
from modnet.methods.base import Inputs, student_modules
from modnet.methods.modulewise import Known, ModuleObjective, ModulewiseMethod, into
from modnet.recipe.stages import Features


class FeatureObjective(ModuleObjective):
    """Smooth L1 to the teacher's features for every module but the last; logit distillation for the last."""

    tailed = False

    def __init__(self, teacher: Chain, modules: Mapping[int, Chain], kd: Features) -> None:
        super().__init__(teacher, modules)
        self.kd, self.last = kd, len(teacher) - 1
        self.final = teacher[max(self.places)].frozen()

    def frozen_outputs(self, x: Tensor, known: Known) -> Known:
        """What enters each of the teacher's modules, and what the last one needed gives."""
        if all(name in known for name in self.replayable(prefix=True)):
            return {into(0): x} | known
        with torch.no_grad():
            found, after = self.entering(x, known), max(self.places)
            return {into(after + 1): self.final(found[into(after)])} | found

    def replayable(self, prefix: bool) -> list[str]:
        """The teacher's features at both ends of every module, whatever ``prefix`` says: they are the targets."""
        ends = sorted({j for i in self.places for j in (i, i + 1)} - {0})
        return [into(j) for j in ends]

    def ended(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The outputs: no tail is needed."""
        return dict(given)

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """The distance of what student module ``i`` gave to what the teacher's module gives."""
        kd, target = self.kd, known[into(i + 1)]
        if i < self.last:
            return F.smooth_l1_loss(given, target, beta=kd.beta)
        term = kd_term(given, target, kd.tau, "soft", kd.kd_norm)
        return blend(base_loss(batch, given, kd.label_smoothing), term, kd.alpha)


class FeatureM2m(ModulewiseMethod):
    """``run: distill, method: features``."""

    def __init__(self, stage: Features, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.kd, self.fused = stage, stage.fused
        self.host = inputs.network(stage.teacher, self.dataset, self.key)
        self.learners = student_modules(stage, inputs, self.dataset, self.host, self.key)

    def objective(self, places: list[int]) -> FeatureObjective:
        """The objective of the modules at some places."""
        return FeatureObjective(self.host, {i: self.learners[i] for i in places}, self.kd)

    def flops(self) -> dict[str, float]:
        """The modules forward and backward; one forward pass of the teacher serves all of them."""
        port = self.dataset.port
        return {
            "student": sum(training_flops(chain, chain.takes or port) for chain in self.learners),
            "passes": training_flops(self.host.frozen(), port),
        }
