"""Scores on a suite of changed test sets: one row a part, and their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from torch import Tensor

from modnet.chain import Chain
from modnet.evaluation.accuracy import Images, Normaliser, Scores, measure


class Parts(Protocol):
    """A suite of test sets that share classes and normalisation."""

    @property
    def parts(self) -> Mapping[str, Images]:
        """The test sets by name."""
        ...

    @property
    def dataset(self) -> Normaliser:
        """The data set that they were made of."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """The classes that may be predicted, bool (classes,); None: all."""
        ...


@dataclass(frozen=True)
class SuiteScores:
    """The scores of every part, and their plain mean over parts."""

    parts: Mapping[str, Scores]
    mean: Scores

    def table(self, metric: str = "top1") -> dict[str, float]:
        """One metric by part, and its mean under ``mean``."""
        rows = {name: float(getattr(scores, metric)) for name, scores in self.parts.items()}
        return {**rows, "mean": float(getattr(self.mean, metric))}


def measure_suite(chain: Chain, suite: Parts, batch: int = 512) -> SuiteScores:
    """Score a chain on every part of a suite; each part weighs the same in the mean."""
    scores = {name: measure(chain, images, suite.dataset, batch, suite.mask) for name, images in suite.parts.items()}
    means = {metric: fmean(getattr(s, metric) for s in scores.values()) for metric in ("top1", "top5", "nll", "ece")}
    return SuiteScores(
        scores, Scores(**means, count=sum(s.count for s in scores.values()), text=all(s.text for s in scores.values()))
    )
