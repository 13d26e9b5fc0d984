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
from modnet.methods.modulewise import ModuleObjective, ModulewiseMethod
from modnet.recipe.stages import Incubate


class IncubationObjective(ModuleObjective):
    """The end task's loss of each hybrid, at the end of the frozen tail, and the hint before it."""

    def __init__(self, meta: Chain, modules: Mapping[int, Chain], smoothing: float, hint: float = 0.0) -> None:
        super().__init__(meta, modules)
        self.smoothing, self.hint, self.last = smoothing, hint, len(meta) - 1
        furthest = max(self.places)
        self.model = meta[furthest].frozen() if hint and furthest < self.last else None

    def inputs(self, x: Tensor) -> list[Tensor]:
        """What enters each of the meta's modules and, for hints, what the furthest place's own module gives."""
        flowing = super().inputs(x)
        if self.model is not None:
            with torch.no_grad():
                flowing.append(self.model(flowing[-1]))
        return flowing

    def loss(self, i: int, given: Tensor, flowing: list[Tensor], batch: Batch) -> Tensor:
        """Base loss of the hybrid's logits; with a hint, also the distance to what the meta's own module gives."""
        loss = base_loss(batch, self.tails[str(i)](given), self.smoothing)
        if not self.hint or i == self.last:
            return loss
        return loss + self.hint * F.smooth_l1_loss(given, flowing[i + 1])


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
        """As for every module method; a hint costs the meta's own modules where they have not passed already."""
        counted, port = super().flops(), self.dataset.port
        if self.hint and not self.fused:
            for module in list(self.host)[:-1]:
                counted["passes"] += training_flops(module.frozen(), module.takes or port)
        return counted
