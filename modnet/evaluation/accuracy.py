"""What a classifier scores on a set of images: accuracies, likelihood and calibration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.chain import Chain
from modnet.engine.divided import is_divided
from modnet.engine.losses import by_position
from modnet.engine.ranks import Team, sharing_team

BINS = 15  # of the expected calibration error


class Images(Protocol):
    """A labelled set of images that can be gone through in order."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (b, C, H, W) and int64 labels (b,); the last batch may be smaller."""
        ...


@runtime_checkable
class Dealable(Protocol):
    """Images of which some batches can be had without reading the others."""

    def turns(self, size: int, first: int, of: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every ``of``-th of the batches, from batch ``first`` on."""
        ...


class Normaliser(Protocol):
    """Whatever turns stored images into a network's input."""

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (b, C, H, W) to float32 of the same shape."""
        ...


@dataclass(frozen=True)
class Scores:
    """Top-1 and top-5 accuracy in percent, mean negative log-likelihood in nats, calibration error in [0, 1].

    Of text each position counts, and the mean negative log-likelihood is told in bits as well. ``ece``: expected
    calibration error with 15 equal bins of confidence (Guo et al. 2017). ``count``: images.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    count: int
    text: bool = False

    def as_dict(self) -> dict[str, float]:
        """The four scores by name, without the count; of text ``bits_per_byte`` as well."""
        found = {"top1": self.top1, "top5": self.top5, "nll": self.nll, "ece": self.ece}
        return found | {"bits_per_byte": self.nll / math.log(2)} if self.text else found


@contextmanager
def evaluating(chain: Chain) -> Iterator[None]:
    """Put a chain in evaluation mode without gradients for the body, then every part back as it was."""
    modes = [(module, module.training) for module in chain.modules()]
    chain.eval()
    try:
        # What is gathered of a divided network in inference mode could not be used by training afterwards.
        with torch.no_grad() if is_divided(chain.parameters()) else torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(chain: Chain, images: Images, dataset: Normaliser, batch: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (b, classes) float32 and labels (b,) of each batch in order, of text by position, on its device."""
    example = next(chain.parameters(), None)
    device = torch.device("cpu") if example is None else example.device
    for stored, labels in images.batches(batch):
        logits = chain(dataset.normalise(stored.to(device, non_blocking=True)))
        yield by_position(logits.float(), labels.to(device))


def predict(chain: Chain, images: Images, dataset: Normaliser, batch: int = 512) -> Tensor:
    """Logits of every image in order, float32 (N, classes), on the CPU."""
    with evaluating(chain):
        found = [logits.cpu() for logits, _ in logits_of(chain, images, dataset, batch)]
    return torch.cat(found).clone()


def measure(chain: Chain, images: Images, dataset: Normaliser, batch: int = 512, mask: Tensor | None = None) -> Scores:
    """Score a chain on every image once; the last, smaller batch counts by its size.

    ``mask``: bool (classes,); the prediction is chosen among these classes only. The chain's training mode is as
    before afterwards. Raises ValueError on an empty set.
    """
    team, mine = sharing_team(), []
    with evaluating(chain):
        own: Images = Turns(images, team.rank, team.size) if team.size > 1 else images
        together = InStep(own, images, team) if team.size > 1 and is_divided(chain.parameters()) else None
        for logits, labels in logits_of(chain, together or own, dataset, batch):
            if mask is not None:
                logits = logits.masked_fill(~mask.to(logits.device), float("-inf"))
            mine.append(_Tally.of(logits, labels))
        mine = mine[: together.own] if together is not None else mine
    # Batches count in their order whoever measured them, so that sums are the same bits for any number of ranks.
    shares = team.gathered(mine)
    turns = [share[turn] for turn in range(max(map(len, shares))) for share in shares if turn < len(share)]
    text = chain.gives is not None and chain.gives["per"] == "position"
    return dataclasses.replace(sum(turns, _Tally()).scores(), text=text)


@dataclass(frozen=True)
class Turns:
    """Every ``of``-th batch of some images, from batch ``first`` on: what one of several ranks measures."""

    images: Images
    first: int
    of: int

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (b, C, H, W) and int64 labels (b,)."""
        if isinstance(self.images, Dealable):
            return self.images.turns(size, self.first, self.of)
        return itertools.islice(self.images.batches(size), self.first, None, self.of)


class InStep:
    """A rank's batches, and behind them the first of all batches again until every rank of the team is through.

    Of a network that is divided over the ranks, no rank can compute anything alone. ``own``: how many were its own.
    """

    def __init__(self, mine: Images, everything: Images, team: Team) -> None:
        self.mine, self.everything, self.team, self.own = mine, everything, team, 0

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images (b, C, H, W) and int64 labels (b,)."""
        mine = self.mine.batches(size)
        while True:
            batch = next(mine, None)
            (more,) = self.team.largest([batch is not None])
            if not more:
                return
            self.own += batch is not None
            yield batch if batch is not None else next(iter(self.everything.batches(size)))


class _Tally:
    """Sums in integers and float64."""

    def __init__(self) -> None:
        self.count = self.first = self.fifth = 0
        self.nll = 0.0
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)  # images, hits, confidence

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> _Tally:
        """A batch's: logits (b, classes), labels (b,)."""
        tally = cls()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        confidence = logits.softmax(dim=1).amax(dim=1).double()
        tally.count = len(labels)
        tally.first = int(hits[:, 0].sum())
        tally.fifth = int(hits.sum())
        tally.nll = float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        place = (confidence * BINS).ceil().sub(1).clamp(0, BINS - 1).long().cpu()
        rows = torch.stack([torch.ones_like(confidence), hits[:, 0].double(), confidence]).cpu()
        tally.bins.index_add_(1, place, rows)
        return tally

    def __add__(self, other: _Tally) -> _Tally:
        total = _Tally()
        total.count, total.first = self.count + other.count, self.first + other.first
        total.fifth, total.nll = self.fifth + other.fifth, self.nll + other.nll
        total.bins = self.bins + other.bins
        return total

    def scores(self) -> Scores:
        """The scores of all that was counted; raises ValueError if nothing was."""
        if self.count == 0:
            raise ValueError("there is no image to score")
        _, hits, confidence = self.bins
        return Scores(
            top1=100 * self.first / self.count,
            top5=100 * self.fifth / self.count,
            nll=self.nll / self.count,
            ece=float((hits - confidence).abs().sum()) / self.count,
            count=self.count,
        )
