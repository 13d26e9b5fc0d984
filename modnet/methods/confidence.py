"""``run: route, method: confidence``: a small network answers, a large one is asked where the small one is unsure.

A gate learns a confidence from the spread of the small network's probabilities by Mowst's losses (arXiv 2311.05185);
on val a threshold is chosen: the one that asks the large network least often, at a bounded loss of accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.job import Job, Metrics
from modnet.errors import RequestError
from modnet.evaluation.accuracy import Images, evaluating, logits_of, measure
from modnet.evaluation.cascade import mean_macs
from modnet.evaluation.cost import cost, training_flops
from modnet.layers.confidence import Cascade, mowst_loss, mowst_star_loss
from modnet.methods.base import NETWORK, Inputs, Kept, Method
from modnet.recipe.confidence import Confidence

TRACK = "network"


class MowstObjective(nn.Module):
    """Mowst's loss of a cascade: mixed losses, or the loss of mixed logits (Mowst*), and the price of asking.

    Without a price, a large network that is a little better everywhere is trusted everywhere, and the confidence no
    longer tells where it is needed. The price, in nats, is what its answer must gain (learning to defer: Madras et al.
    2018; Mozannar and Sontag 2020).
    """

    def __init__(self, chain: Chain, stage: Confidence) -> None:
        super().__init__()
        self.chain, self.star, self.price = chain, stage.loss == "mowst-star", stage.price

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """The loss of the one track, a scalar."""
        weak, strong, confidence = cascade_of(self.chain).both(batch.x, ctx)
        target = batch.y if batch.target is None else batch.target
        loss = (mowst_star_loss if self.star else mowst_loss)(weak, strong, confidence, target)
        if self.price:
            loss = loss + self.price * (1 - confidence)
        return {TRACK: loss.mean()}


def cascade_of(chain: Chain) -> Cascade:
    """The leaf of a chain that is nothing but a cascade."""
    leaf = chain.leaves[-1]
    assert isinstance(leaf, Cascade)
    return leaf


@dataclass(frozen=True)
class Verdicts:
    """Of every image, in order: the gate's score, and whether each network is right; all of length N."""

    scores: Tensor
    weak: Tensor
    strong: Tensor

    def threshold(self, least: float) -> tuple[float, float]:
        """The threshold that asks the large network least often while at least ``least`` percent are right.

        Beside it the share in percent that the large network is asked. Where none does, it is always asked.
        """
        order = self.scores.argsort(descending=True, stable=True)
        scores, gain = self.scores[order], (self.weak.long() - self.strong.long())[order]
        right = int(self.strong.sum()) + torch.cat([gain.new_zeros(1), gain.cumsum(0)])
        count = len(scores)
        easy = torch.arange(count + 1)
        apart = torch.cat([torch.tensor([True]), scores[1:] < scores[:-1], torch.tensor([True])])  # no tie is cut
        fits = easy[apart & (100 * right >= least * count - 1e-6)]
        taken = int(fits.max()) if len(fits) else 0
        cut = float(scores[taken - 1]) if taken else float("inf")
        return cut, 100 * (count - taken) / count


def verdicts(cascade: Cascade, images: Images, dataset: object) -> Verdicts:
    """Both networks and the gate on every image."""
    leaf = Chain([cascade])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(leaf):
        weak = list(logits_of(cascade.weak, images, dataset))  # type: ignore[arg-type]
        strong = logits_of(cascade.strong, images, dataset)  # type: ignore[arg-type]
        for (small, labels), (large, _) in zip(weak, strong, strict=True):
            rights = (small.argmax(1) == labels, large.argmax(1) == labels)
            found.append((cascade.score(small).cpu(), rights[0].cpu(), rights[1].cpu()))
    scores, small_right, large_right = (torch.cat(column).clone() for column in zip(*found, strict=True))
    return Verdicts(scores, small_right, large_right)


class ConfidenceRouting(Method):
    """A cascade of two trained networks; what learns is the gate, and the networks if asked."""

    def __init__(self, stage: Confidence, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.route = stage
        weak, strong = (inputs.network(name, self.dataset, self.key) for name in (stage.weak, stage.strong))
        self.check(stage.weak, weak)
        self.check(stage.strong, strong)
        gate = stage.gate.model_dump(mode="json")
        with self.key.fold("gate").forked():
            self.cascade = Cascade(weak, strong, gate, stage.answer, stage.quirk_probabilities).to(inputs.device)
        self.chain = Chain([self.cascade])
        self.given = inputs.val_top1(strong, self.dataset)
        self.floor = self.given - stage.lose

    def check(self, name: str, network: Chain) -> None:
        """Raises RequestError for a network of other images or classes than this stage's data."""
        classes, port = len(self.dataset.classes), self.dataset.port
        gives = network.gives["classes"] if network.gives is not None else None
        if gives != classes or (network.takes is not None and not port.fits(network.takes)):
            raise RequestError(
                f"{name!r} takes {network.takes} and tells {gives} classes apart, but data {self.stage.data!r} has "
                f"{port} and {classes} classes; route between networks that were trained for these data"
            )

    def jobs(self) -> list[Job]:
        """One job, or with ``learn: turns`` two a round: the small network with the gate, then the large one.

        None where the gate alone learns and is a plain score.
        """
        learn = self.route.learn
        if learn == "gate" and self.route.gate.plain:
            return []
        if learn != "turns":
            return [self.turn("gate", *{"gate": (), "weak": ("weak",), "joint": ("weak", "strong")}[learn])]
        turns = []
        for i in range(self.route.rounds):
            turns += [self.turn(f"weak{i}", "weak"), self.turn(f"strong{i}", "strong", gate=False)]
        return turns

    def turn(self, name: str, *parts: str, gate: bool = True) -> Job:
        """A job in which the gate and the named networks learn and all else is frozen, on the same storage."""
        twin = copy.copy(self.cascade)
        twin._modules = dict(self.cascade._modules)
        for part in {"weak", "strong"} - set(parts):
            setattr(twin, part, getattr(self.cascade, part).frozen())
        if not gate:
            memo: dict[int, object] = {
                id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.cascade.gate.parameters()
            }
            twin.gate = copy.deepcopy(self.cascade.gate, memo | {id(b): b for b in self.cascade.gate.buffers()})
        chain = Chain([twin])
        score = "top1" if "strong" in parts or self.route.answer == "mix" else "easy"
        objective = MowstObjective(chain, self.route)
        return self.job(name, objective, [self.track(TRACK, chain)], lambda: self.validate(chain), score=score)

    def validate(self, chain: Chain | None = None) -> dict[str, Metrics]:
        """On val, at the threshold that is chosen there: the cascade, and the share of images that is easy."""
        cascade = cascade_of(chain or self.chain)
        if self.route.answer == "mix":
            return {TRACK: measure(Chain([cascade]), self.dataset.val, self.dataset).as_dict()}
        cut, asked = verdicts(cascade, self.dataset.val, self.dataset).threshold(self.floor)
        cascade.threshold.fill_(cut)
        scores = measure(Chain([cascade]), self.dataset.val, self.dataset).as_dict()
        return {TRACK: scores | {"easy": 100 - asked, "strong_share": asked}}

    def untrained(self) -> dict[str, Metrics]:
        """As after training: a plain score needs its threshold alone."""
        return self.validate()

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The cascade at the threshold of its last weights, and what it asks of the large network on val."""
        found = self.validate()[TRACK]
        facts = {"strong_val_top1": self.given, "weak_val_top1": self.top1(self.cascade.weak)}
        if self.route.answer == "mix":
            return Kept({NETWORK: self.chain}, facts)
        port, share = self.dataset.port, found["strong_share"]
        macs = mean_macs(self.cascade, port, share / 100)
        whole = cost(self.cascade.strong, port).macs
        facts |= {"threshold": float(self.cascade.threshold), "strong_share": share, "macs": macs, "strong_macs": whole}
        self.inputs.say(
            f"on val: the small network {facts['weak_val_top1']:.2f} %, the large one {self.given:.2f} %, the cascade "
            f"{found['top1']:.2f} %; the large one is asked about {share:.1f} % of the images, "
            f"{100 * macs / whole:.1f} % of its MACs in all"
        )
        return Kept({NETWORK: self.chain}, facts)

    def top1(self, network: Chain) -> float:
        """A network's accuracy on val."""
        return measure(network, self.dataset.val, self.dataset).top1

    def flops(self) -> dict[str, float]:
        """What learns forward and backward; a network that never learns forward only."""
        learn, port = self.route.learn, self.dataset.port
        student, passes = 0.0, 0.0
        for part, learns in (("weak", learn != "gate"), ("strong", learn in ("turns", "joint"))):
            network: Chain = getattr(self.cascade, part)
            counted = training_flops(network if learns else network.frozen(), port)
            student, passes = (student + counted, passes) if learns else (student, passes + counted)
        return {"student": student, "passes": passes}
