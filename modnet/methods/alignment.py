"""A meta network for a teacher that was not incubated: block-wise distillation (Wang et al. 2018; Li et al. 2020).

Module i of a small network, as wide as the teacher, must give what the teacher's module i gives. It sees what the
teacher's module sees, or, for a share of the images (``mix``), what its own predecessors make of the image: a hybrid,
in which teacher modules stand among meta modules, feeds it both. Targets are always the teacher's own, so that later
modules mend what earlier ones leave. No gradient passes from one module to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Metrics
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.errors import RunFailed
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cost import training_flops
from modnet.methods.base import NETWORK, Inputs, Kept, Method, module_name, same_count
from modnet.methods.modulewise import Known, ModuleObjective, into
from modnet.recipe.stages import Align

SCORE = "aligned"  # mean top-1 of all hybrids and the meta itself: one score for all, so that one epoch is chosen
LOST = 0.1  # a hybrid that keeps less than this share of the teacher's lead over guessing has lost the teacher


class AlignObjective(ModuleObjective):
    """The distance of every meta module to the teacher's module, on inputs of the teacher and of the meta itself."""

    tailed = False

    def __init__(self, teacher: Chain, meta: Chain, kd: Align) -> None:
        super().__init__(teacher, dict(enumerate(meta)))
        self.kd, self.last = kd, len(meta) - 1
        self.final = teacher[self.last].frozen()
        self.prefixes = [int((module.gives and module.gives["prefix"]) or 0) for module in teacher]

    def frozen_outputs(self, x: Tensor, known: Known) -> Known:
        """What enters each of the teacher's modules, and its logits; no gradient."""
        if all(name in known for name in self.replayable(prefix=True)):
            return {into(0): x} | known
        with torch.no_grad():
            found = self.entering(x, known)
            return {into(self.last + 1): self.final(found[into(self.last)])} | found

    def replayable(self, prefix: bool) -> list[str]:
        """The teacher's features behind every module, whatever ``prefix`` says: they are the targets."""
        return [into(i + 1) for i in self.places]

    def apart(self, batch: Batch, ctx: Pass) -> Iterator[dict[str, Tensor]]:
        """The losses, module after module; a module's output reaches the next one without a gradient."""
        known, entering = self.frozen_outputs(batch.x, batch.replayed()), batch.x
        for i in self.places:
            own = ctx.enter("module", i)
            given = self.learners[str(i)](entering, own)
            yield {module_name(i): sum(own.losses.values(), self.loss(i, given, given, known, batch))}
            if i < self.last:
                entering = self.mixed(given.detach(), known[into(i + 1)], batch.ids, own)

    def mixed(self, own: Tensor, theirs: Tensor, ids: Tensor, ctx: Pass) -> Tensor:
        """For each sample the meta's own features with probability ``mix``, else the teacher's; shapes (B, …)."""
        if ctx.key is None:
            return theirs
        picked = ctx.key.fold("mix").uniform(ids)[:, 0] < self.kd.mix
        return torch.where(picked.view(-1, *[1] * (own.ndim - 1)), own, theirs)

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """Distance to the teacher's features; for the last module, distillation of its logits."""
        kd, target = self.kd, known[into(i + 1)]
        if i < self.last:
            return feature_distance(given, target, self.prefixes[i])
        term = kd_term(given, target, kd.tau, "soft", kd.kd_norm)
        return blend(base_loss(batch, given, kd.label_smoothing), term, kd.alpha)


def feature_distance(given: Tensor, target: Tensor, prefix: int = 0) -> Tensor:
    """Squared error relative to the target's variance, plus that of the normalised tokens; a scalar.

    Both of shape (B, tokens, width). The first term is about the residual stream, which blocks add to; the second
    about what they read of it, which is normalised by LayerNorm, so that small tokens count as much as large ones.
    The first ``prefix`` tokens (a class token) count as much as all patches together: the head may read them alone.
    """
    if 0 < prefix < target.shape[1]:
        parts = ((given[:, at], target[:, at]) for at in (slice(prefix), slice(prefix, None)))
        return torch.stack([feature_distance(*part) for part in parts]).mean()
    shape = given.shape[-1:]
    stream = F.mse_loss(given, target) / target.var().clamp_min(1e-6)
    return stream + F.mse_loss(F.layer_norm(given, shape), F.layer_norm(target, shape))


class Alignment(Method):
    """``run: distill, method: align``: the whole network that it gives is named as ``meta:`` of other stages."""

    def __init__(self, stage: Align, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.kd = stage
        self.teacher = inputs.network(stage.teacher, self.dataset, self.key)
        self.meta = self.with_drop_path(inputs.fresh(stage.student, self.dataset, self.key))
        same_count(teacher=self.teacher, student=self.meta)
        self.hybrids = [self.hybrid(i) for i in range(len(self.meta))]  # raises PortMismatch before the first step

    def hybrid(self, i: int) -> Chain:
        """The meta with the teacher's module ``i`` in its place."""
        return self.meta[:i] + self.teacher[i] + self.meta[i + 1 :]

    def jobs(self) -> list[Job]:
        """One job with a track for each module."""
        tracks = [self.track(module_name(i), module) for i, module in enumerate(self.meta)]
        objective = AlignObjective(self.teacher, self.meta, self.kd)
        return [self.job("modules", objective, tracks, self.validate, score=SCORE)]

    def validate(self) -> dict[str, Metrics]:
        """On val: each hybrid's scores by module, and with each the meta's own top-1 and the mean of all."""
        found = [self.measured(hybrid) for hybrid in self.hybrids]
        own = self.measured(self.meta)["top1"]
        shared = {"meta_top1": own, SCORE: fmean([*(metrics["top1"] for metrics in found), own])}
        return {module_name(i): metrics | shared for i, metrics in enumerate(found)}

    def measured(self, chain: Chain) -> Metrics:
        """A network's scores on val."""
        return measure(chain, self.dataset.val, self.dataset).as_dict()

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The meta, with what it, the teacher and every hybrid score on val; raises RunFailed if one is at chance."""
        found = [metrics[module_name(i)] for i in range(len(self.meta))]
        hybrids, own = [each["top1"] for each in found], found[0]["meta_top1"]
        teacher = self.measured(self.teacher)["top1"]
        listed = "  ".join(f"{top1:.2f}" for top1 in hybrids)
        self.inputs.say(
            f"on val: the teacher {teacher:.2f} %, the meta {own:.2f} %; the meta with one teacher module in it "
            f"{listed} %, at most {max(0.0, teacher - min(hybrids)):.2f} points below the teacher"
        )
        self.check(hybrids, teacher)
        facts = {"teacher_val_top1": teacher, "hybrid_val_top1": hybrids, "meta_val_top1": own}
        return Kept({NETWORK: self.meta}, facts)

    def check(self, hybrids: list[float], teacher: float) -> None:
        """Raises RunFailed if a hybrid is at chance; a teacher that is at chance itself is only told."""
        chance, count = 100 / len(self.dataset.classes), len(self.dataset.val)
        if teacher < chance + 3 * (chance * (100 - chance) / count) ** 0.5:  # three standard errors of guessing
            self.inputs.say(f"the teacher itself is at chance ({chance:.2f} %), so the meta cannot be judged by it")
            return
        worst = min(range(len(hybrids)), key=hybrids.__getitem__)
        if hybrids[worst] - chance >= LOST * (teacher - chance):
            return
        raise RunFailed(
            f"the meta network is not aligned with teacher {self.kd.teacher!r}: with the teacher's module {worst} in "
            f"its place it scores {hybrids[worst]:.2f} % on val, where guessing gives {chance:.2f} % and the teacher "
            f"{teacher:.2f} %, so nothing could be taught through it. What helps: more than epochs: {self.kd.epochs}, "
            f"more images than {len(self.dataset.train)}, mix: 0.5 (it is {self.kd.mix:g}), a lower learning rate, or "
            "more blocks in each module of the student, which is the meta"
        )

    def flops(self) -> dict[str, float]:
        """The meta forward and backward; the teacher forward."""
        port = self.dataset.port
        return {
            "student": training_flops(self.meta, port),
            "passes": training_flops(self.teacher.frozen(), port),
        }
