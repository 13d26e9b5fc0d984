"""m2mKD: a student module learns to act like a teacher module, both plugged into the same frozen meta network.

Source: Lo et al. 2024, arXiv 2402.16918. With h the meta's output before module i, M the meta's tail after it:
t = M(T_i(h)) without gradient, s = M(post(S_i(pre(h)))), loss = (1 − α) · base(s, y) + α · distillation(s, t).

Logits say little about what a module must hand to the next one, so modules that are good in the meta need not fit each
other. ``hint`` adds the distance of post(S_i(pre(h))) to T_i(h) itself (Romero et al. 2015, FitNets), for every module
but the last, whose output are logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.chain import Chain
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.evaluation.cost import training_flops
from modnet.methods.base import Inputs, same_count, student_modules
from modnet.methods.modulewise import Known, ModuleObjective, ModulewiseMethod, into
from modnet.recipe.stages import M2mkd


class M2mkdObjective(ModuleObjective):
    """The m2mKD loss of every student module."""

    def __init__(
        self, meta: Chain, teacher: Chain, modules: Mapping[int, Chain], kd: M2mkd, smoothing: float | None = None
    ) -> None:
        super().__init__(meta, modules)
        self.kd, self.smoothing = kd, kd.label_smoothing if smoothing is None else smoothing
        self.last = len(meta) - 1
        for i in self.places:  # raises PortMismatch here rather than in the first step
            _ = meta[:i] + teacher[i] + meta[i + 1 :]
        self.teachers = nn.ModuleDict({str(i): teacher[i].frozen() for i in self.places})

    def frozen_outputs(self, x: Tensor, known: Known) -> Known:
        """What enters the modules, and the teacher's logits (``target2``) and outputs (``taught2``) of each."""
        with torch.no_grad():
            found = self.entering(x, known)
            if all(name in found for name in self.replayable(prefix=False)):
                return found
            taught = {i: self.teachers[str(i)](found[into(i)]) for i in self.places}
            targets = self.through(taught)
        found |= {f"taught{i}": y for i, y in taught.items() if f"taught{i}" in self.replayable(prefix=False)}
        return found | {f"target{i}": y for i, y in targets.items()}

    def replayable(self, prefix: bool) -> list[str]:
        """The teacher's logits, with a hint its features as well; ``prefix``: what enters the modules."""
        hinted = [f"taught{i}" for i in self.places if self.kd.hint and i < self.last]
        return [*(f"target{i}" for i in self.places), *hinted, *super().replayable(prefix)]

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """(1 − α) · base + α · distillation at the end of the meta's tail, and the hint before it."""
        kd = self.kd
        term = kd_term(ended, known[f"target{i}"], kd.tau, kd.kind, kd.kd_norm)
        loss = blend(base_loss(batch, ended, self.smoothing), term, kd.alpha)
        if not (kd.hint and i < self.last):
            return loss
        return loss + kd.hint * F.smooth_l1_loss(given, known[f"taught{i}"])


class M2mKD(ModulewiseMethod):
    """``run: distill, method: m2mkd``."""

    def __init__(self, stage: M2mkd, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.kd, self.fused = stage, stage.fused
        self.host = inputs.network(stage.meta, self.dataset, self.key)
        self.teacher = inputs.network(stage.teacher, self.dataset, self.key)
        same_count(teacher=self.teacher, meta=self.host)
        self.learners = student_modules(stage, inputs, self.dataset, self.host, self.key)

    def objective(self, places: list[int]) -> M2mkdObjective:
        """The objective of the modules at some places."""
        return M2mkdObjective(self.host, self.teacher, {i: self.learners[i] for i in places}, self.kd)

    def flops(self) -> dict[str, float]:
        """As for every module method, and the teacher's modules and their tails, forward only."""
        counted, port = super().flops(), self.dataset.port
        for i in range(len(self.learners)):
            teaching = (self.teacher[i] + self.host[i + 1 :]).frozen()
            counted["passes"] += training_flops(teaching, teaching.takes or port)
        return counted
