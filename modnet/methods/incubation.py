"""Deep Incubation: every module of a large network learns alone inside a small frozen meta network.

Source: Ni et al. 2022, arXiv 2212.04129.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss
from modnet.evaluation.cost import training_flops
from modnet.layers.drop_path import set_drop_path
from modnet.methods.base import Inputs, same_count
from modnet.methods.modulewise import Known, ModuleObjective, ModulewiseMethod, into
from modnet.recipe.stages import Incubate


class IncubationObjective(ModuleObjective):
    """The end task's loss of each hybrid, at the end of the frozen tail, and the hint before it."""

    def __init__(self, meta: Chain, modules: Mapping[int, Chain], smoothing: float, hint: float = 0.0) -> None:
        super().__init__(meta, modules)
        self.smoothing, self.hint, self.last = smoothing, hint, len(meta) - 1
        furthest = max(self.places)
        self.model = meta[furthest].frozen() if hint and furthest < self.last else None

    def frozen_outputs(self, x: Tensor, known: Known) -> Known:
        """What enters each of the meta's modules and, for hints, what the furthest place's own module gives."""
        found, after = super().frozen_outputs(x, known), max(self.places)
        if self.model is None or into(after + 1) in found:
            return found
        with torch.no_grad():
            return found | {into(after + 1): self.model(found[into(after)])}

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """Base loss of the hybrid's logits; with a hint, also the distance to what the meta's own module gives."""
        loss = base_loss(batch, ended, self.smoothing)
        if not self.hint or i == self.last:
            return loss
        return loss + self.hint * F.smooth_l1_loss(given, known[into(i + 1)])


class Incubation(ModulewiseMethod):
    """``run: incubate``."""

    def __init__(self, stage: Incubate, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.fused, self.hint = stage.fused, stage.hint
        self.host = inputs.network(stage.meta, self.dataset, self.key)
        target = inputs.fresh(stage.model, self.dataset, self.key)
        same_count(model=target, meta=self.host)
        self.learners = list(target)
        for i in range(len(self.learners)):  # a block's rate follows from its place in the hybrid, not in the target
            set_drop_path(self.hybrid(i), inputs.drop_path(stage, stage.model))

    def objective(self, places: list[int]) -> IncubationObjective:
        """The objective of the modules at some places."""
        modules = {i: self.learners[i] for i in places}
        return IncubationObjective(self.host, modules, self.stage.label_smoothing, self.hint)

    def flops(self) -> dict[str, float]:
        """As for every module method; a hint costs the meta's own module at the end of each group, but for the last."""
        counted, port, last = super().flops(), self.dataset.port, len(self.learners) - 1
        for places in self.groups() if self.hint else []:
            if places[-1] < last:
                module = self.host[places[-1]].frozen()
                counted["passes"] += training_flops(module, module.takes or port)
        return counted
