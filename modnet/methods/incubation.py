"""Deep Incubation: every module of a large network learns alone inside a small frozen meta network.

Source: Ni et al. 2022, arXiv 2212.04129.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from modnet.chain import Chain
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss
from modnet.layers.drop_path import set_drop_path
from modnet.methods.base import Inputs, same_count
from modnet.methods.modulewise import Known, ModuleObjective, ModulewiseMethod
from modnet.recipe.stages import Incubate


class IncubationObjective(ModuleObjective):
    """The end task's loss of each hybrid, at the end of the frozen tail; no distillation."""

    def __init__(self, meta: Chain, modules: Mapping[int, Chain], smoothing: float) -> None:
        super().__init__(meta, modules)
        self.smoothing = smoothing

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """Base loss of the hybrid's logits."""
        return base_loss(batch, ended, self.smoothing)


class Incubation(ModulewiseMethod):
    """``run: incubate``."""

    def __init__(self, stage: Incubate, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.fused = stage.fused
        self.host = inputs.network(stage.meta, self.dataset, self.key)
        target = inputs.fresh(stage.model, self.dataset, self.key)
        same_count(model=target, meta=self.host)
        self.learners = list(target)
        for i in range(len(self.learners)):  # a block's rate follows from its place in the hybrid, not in the target
            set_drop_path(self.hybrid(i), inputs.drop_path(stage, stage.model))

    def objective(self, places: list[int]) -> IncubationObjective:
        """The objective of the modules at some places."""
        return IncubationObjective(self.host, {i: self.learners[i] for i in places}, self.stage.label_smoothing)
