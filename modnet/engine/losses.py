"""Losses: labels hard, smoothed or mixed, and a teacher's logits beside them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from modnet.engine.batch import Batch

Kind = Literal["soft", "hard"]
Norm = Literal["numel", "batchmean"]


def soft_cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of -sum_c target_c log p_c; ``target`` float (B, classes), smoothed towards uniform."""
    return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def by_position(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (…, classes) and labels (…) as those of single samples: every position of a text counts as one."""
    return logits.flatten(0, -2), labels.flatten()


def base_loss(batch: Batch, logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """The loss against labels: soft targets if the batch's labels were mixed, else the labels themselves.

    ``smoothing`` moves either towards uniform, (1 - s) target + s / classes (Szegedy et al. 2016), which for mixed
    labels equals mixing smoothed labels. Of logits (B, length, classes), each position counts as a sample. Computed in
    float32; a scalar.
    """
    if batch.target is not None:
        return soft_cross_entropy(logits, batch.target, smoothing)
    logits, labels = by_position(logits, batch.y)
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def kd_term(student: Tensor, teacher: Tensor, tau: float = 1.0, kind: Kind = "soft", norm: Norm = "numel") -> Tensor:
    """The teacher's part of a distillation loss, from logits (B, classes) of both; the teacher gets no gradient.

    Soft: tau² KL(teacher ‖ student) at temperature tau, summed and divided by B·classes (``numel``, as Deep Incubation
    and m2mKD do) or by B (``batchmean``, Hinton et al. 2015); the two differ by the factor ``classes``. Hard:
    cross-entropy with the teacher's first choice; ``tau`` and ``norm`` play no part. Of text (B, length, classes) each
    position counts as a sample.
    """
    student, teacher = student.flatten(0, -2), teacher.detach().float().flatten(0, -2)
    if kind == "hard":
        return F.cross_entropy(student.float(), teacher.argmax(dim=1))
    total = F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        F.log_softmax(teacher / tau, dim=1),
        reduction="sum",
        log_target=True,
    )
    return total * (tau * tau / (student.numel() if norm == "numel" else len(student)))


def blend(base: Tensor, taught: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) base + alpha taught: ``alpha`` is the teacher's weight."""
    return (1 - alpha) * base + alpha * taught
