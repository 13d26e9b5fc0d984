"""Training a whole network end to end with labels, and with a teacher's logits beside them if one is given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.checkpoint import Checkpoints
from modnet.engine.job import Job, Metrics
from modnet.engine.losses import base_loss, blend, kd_term
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cost import training_flops
from modnet.layers.adapters import see
from modnet.methods.base import NETWORK, Inputs, Kept, Method
from modnet.recipe.stages import HintonKD, Teaching, Train
from modnet.surgery.adapting import adapt
from modnet.surgery.freezing import only_head

TRACK, TARGET = "network", "target"


class WholeNetwork(nn.Module):
    """(1 − α) · base loss + α · distillation from a frozen teacher; without a teacher the base loss alone."""

    def __init__(
        self, chain: Chain, smoothing: float, teacher: Chain | None = None, kd: HintonKD | Teaching | None = None
    ) -> None:
        super().__init__()
        self.chain, self.smoothing, self.kd = chain, smoothing, kd
        self.teacher = teacher.frozen() if teacher is not None else None

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """The loss of the one track, a scalar; what leaves put into ``ctx.losses`` is added."""
        logits = self.chain(batch.x, ctx)
        loss = base_loss(batch, logits, self.smoothing)
        if self.teacher is not None and self.kd is not None:
            target = self.frozen_outputs(batch.x, batch.replayed())[TARGET]
            kd = self.kd
            loss = blend(loss, kd_term(logits, target, kd.tau, kd.kind, kd.kd_norm), kd.alpha)
        return {TRACK: sum(ctx.losses.values(), loss)}

    def frozen_outputs(self, x: Tensor, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's logits for images (B, …), if there is one and they are not known."""
        if TARGET in known or self.teacher is None:
            return known
        with torch.no_grad():
            return {TARGET: self.teacher(x)}

    def replayable(self, prefix: bool) -> list[str]:
        """The name of the teacher's logits, if there is a teacher."""
        return [TARGET] if self.teacher is not None else []


class WholeMethod(Method):
    """A method whose one track is a whole network."""

    chain: Chain
    teacher: Chain | None = None
    kd: HintonKD | Teaching | None = None

    def jobs(self) -> list[Job]:
        """One job that trains the network."""
        objective = WholeNetwork(self.chain, self.stage.label_smoothing, self.teacher, self.kd)
        return [self.job(TRACK, objective, [self.track(TRACK, self.chain)], self.validate)]

    def validate(self) -> dict[str, Metrics]:
        """Accuracy of the network on val."""
        return {TRACK: measure(self.chain, self.dataset.val, self.dataset).as_dict()}

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The network."""
        return Kept({NETWORK: self.chain})

    def flops(self) -> dict[str, float]:
        """The network forward and backward; the teacher forward."""
        frozen = [self.teacher.frozen()] if self.teacher is not None else []
        return {
            "student": training_flops(self.chain, self.dataset.port),
            "passes": sum(training_flops(chain, self.dataset.port) for chain in frozen),
        }


class Supervised(WholeMethod):
    """``run: train``: from scratch, or going on from an earlier stage with its optimizer's state.

    ``tune: head`` trains the last leaf alone: a linear probe, whose frozen front part also keeps its statistics.
    """

    def __init__(self, stage: Train, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.train = stage
        if stage.from_ is None:
            assert stage.model is not None
            self.chain = inputs.fresh(stage.model, self.dataset, self.key)
        else:
            self.key = self.key.fold(inputs.keys[stage.from_])  # other shuffles and draws than the earlier stage had
            earlier, classes = inputs.stored(stage.from_, NETWORK), len(self.dataset.classes)
            adapted, changes = adapt(earlier, self.dataset.port, classes, stage.on_mismatch, self.key)
            self.chain = see(adapted.to(inputs.device), self.dataset.mean, self.dataset.std)
            for change in changes:
                inputs.say(change)
            self.adapted = bool(changes)
        self.with_drop_path(self.chain)
        if stage.tune == "head":
            self.chain = only_head(self.chain)

    def jobs(self) -> list[Job]:
        """One job; it starts from the earlier stage's last checkpoint if the network is unchanged."""
        (job,) = super().jobs()
        if self.train.from_ is not None and not self.adapted:
            job.start = Checkpoints(self.inputs.folder(self.train.from_), TRACK).path
        return [job]


class Hinton(WholeMethod):
    """``run: distill, method: kd``: a whole student learns from a whole teacher's logits (Hinton et al. 2015)."""

    def __init__(self, stage: HintonKD, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.kd = stage
        self.chain = self.with_drop_path(inputs.fresh(stage.student, self.dataset, self.key))
        self.teacher = inputs.network(stage.teacher, self.dataset, self.key)
        classes = len(self.dataset.classes)
        if self.teacher.gives is not None and self.teacher.gives["classes"] not in (None, classes):
            raise RequestError(
                f"teacher {stage.teacher!r} tells {self.teacher.gives['classes']} classes apart, "
                f"data {stage.data!r} has {classes}"
            )
