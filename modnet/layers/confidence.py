"""Confidence of a small network, and the leaf that asks a large one where it is low (Mowst, arXiv 2311.05185).

The confidence c in (0, 1) of an input is a learned function of how far the small network's probabilities are spread.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.chain import Chain, Module, Pass
from modnet.errors import RequestError
from modnet.recipe.confidence import PLAIN

Answer = Literal["threshold", "mix"]


def dispersion(logits: Tensor) -> Tensor:
    """How certain logits (B, classes) are, (B, 2): variance of the probabilities and 1 - entropy, 0 to 1 each.

    0 for equal probabilities, 1 for a single one; without gradient. Source: Mowst, section 3.1.
    """
    probs = logits.detach().softmax(-1)
    count = probs.shape[-1]
    variance = probs.var(-1, correction=0) * count**2 / (count - 1)
    entropy = torch.special.entr(probs).sum(-1) / math.log(count)
    return torch.stack([variance, 1 - entropy], dim=-1)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, each before it normed over the batch if asked: (B, given) to (B, out)."""

    def __init__(self, given: int, hidden: int, out: int, layers: int, batch_norm: bool = False) -> None:
        super().__init__()
        sizes = [given, *[hidden] * (layers - 1), out]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) if batch_norm else nn.Identity() for _ in sizes[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=False):
            x = F.relu(norm(linear(x)))
        out: Tensor = self.linears[-1](x)
        return out


class PerceptronGate(nn.Module):
    """The logit of the confidence, (B,), from the dispersion (B, 2) and, if it sees them, features (B, F)."""

    def __init__(self, features: int, hidden: int, layers: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.sees = features > 0
        self.perceptron = Perceptron(2 + features, hidden, 1, layers, batch_norm)

    def forward(self, spread: Tensor, features: Tensor) -> Tensor:
        """``features`` play no part where the gate was built for none."""
        given = torch.cat([spread, features], dim=-1) if self.sees else spread
        out: Tensor = self.perceptron(given)[:, 0]
        return out


class PlainGate(nn.Module):
    """The logit of a plain score in [0, 1], (B,), without parameters: ``max-probability``, ``margin`` or ``entropy``.

    These are the largest probability, its distance to the second largest, and 1 minus the entropy as a share of the
    largest there can be: what early exits and model cascades commonly ask (Hendrycks and Gimpel 2017 for the first).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, spread: Tensor, features: Tensor) -> Tensor:
        """Dispersion (B, 2) and probabilities in descending order (B, classes)."""
        if self.kind == "entropy":
            score = spread[:, 1]
        else:
            score = features[:, 0] - (features[:, 1] if self.kind == "margin" else 0)
        return torch.logit(score, eps=1e-12).float()


class HyperGate(nn.Module):
    """A gate whose two linear layers, 2 to hidden to 1, are given by small networks that see the features (B, F)."""

    def __init__(self, features: int, hidden: int, layers: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        sizes = {"weight1": 2 * hidden, "bias1": hidden, "weight2": hidden, "bias2": 1}
        self.makers = nn.ModuleDict(
            {name: Perceptron(features, hidden, size, layers, batch_norm) for name, size in sizes.items()}
        )

    def forward(self, spread: Tensor, features: Tensor) -> Tensor:
        """Dispersion (B, 2) and features (B, F) to the logit of the confidence (B,)."""
        made = {name: maker(features) for name, maker in self.makers.items()}
        first = made["weight1"].view(-1, 2, self.hidden)
        inner = torch.einsum("bi,bih->bh", spread, first) + made["bias1"]
        out: Tensor = (inner * made["weight2"]).sum(-1) + made["bias2"][:, 0]
        return out


def mowst_loss(weak: Tensor, strong: Tensor, confidence: Tensor, target: Tensor) -> Tensor:
    """Each sample's c · loss of the small + (1 - c) · loss of the large network, (B,) (Mowst, equation 1).

    Logits (B, classes), confidence (B,), target int64 (B,) or float32 (B, classes).
    """
    small, large = (F.cross_entropy(logits.float(), target, reduction="none") for logits in (weak, strong))
    return confidence * small + (1 - confidence) * large


def mowst_star_loss(weak: Tensor, strong: Tensor, confidence: Tensor, target: Tensor) -> Tensor:
    """Each sample's loss of the mixed logits, (B,) (Mowst*); shapes as in :func:`mowst_loss`."""
    return F.cross_entropy(mixed(weak, strong, confidence).float(), target, reduction="none")


def mixed(weak: Tensor, strong: Tensor, confidence: Tensor) -> Tensor:
    """The sum c · weak + (1 - c) · strong for logits or probabilities (B, classes), confidence (B,)."""
    share = confidence[:, None]
    return share * weak + (1 - share) * strong


def gate_of(gate: dict[str, Any], classes: int) -> nn.Module:
    """The gate that plain values describe, for a small network of so many classes."""
    hyper = gate["kind"] == "hyper"
    if gate["kind"] in PLAIN:
        return PlainGate(gate["kind"])
    features = classes if hyper or gate["sees"] == "probabilities" else 0
    made = HyperGate if hyper else PerceptronGate
    return made(features, gate["hidden"], gate["layers"], gate["batch_norm"])


class Cascade(Module):
    """Two whole networks: the small one answers where it is confident, the large one elsewhere; logits (B, classes).

    ``gate``: ``{"kind": "perceptron" | "hyper", "sees": "dispersion" | "probabilities", "hidden", "layers",
    "batch_norm"}``, or a plain score's kind. ``answer``: ``threshold`` asks the large network only about inputs whose
    confidence's logit is below ``self.threshold``; ``mix`` asks it always and mixes logits by the confidence (Mowst*).
    ``quirk_probabilities`` mixes as the reference does: probabilities, the confidence taken from a softmax of these.
    The share of inputs that the large network answered goes to ``ctx.stats``. Raises RequestError if the networks take
    or give other things.
    """

    role = "head"
    threshold: Tensor

    def __init__(
        self,
        weak: Chain,
        strong: Chain,
        gate: dict[str, Any],
        answer: Answer = "threshold",
        quirk_probabilities: bool = False,
    ) -> None:
        super().__init__()
        for word, small, large in (("take", weak.takes, strong.takes), ("give", weak.gives, strong.gives)):
            if small is not None and not small.fits(large):
                raise RequestError(f"the networks of a cascade must {word} the same, but one is {small}, one {large}")
        self.takes, self.gives = weak.takes, weak.gives
        classes = weak.gives["classes"] if weak.gives is not None else None
        if classes is None:
            raise RequestError("the small network of a cascade must give logits of a known number of classes")
        self.weak, self.strong, self.answer, self.quirk = weak, strong, answer, quirk_probabilities
        self.gate = gate_of(gate, classes)
        self.register_buffer("threshold", torch.zeros(()))

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a gate that is frozen keeps its running statistics."""
        super().train(mode)
        if not any(p.requires_grad for p in self.gate.parameters()):
            self.gate.eval()
        return self

    def score(self, weak: Tensor) -> Tensor:
        """The logit of the confidence, (B,), from the small network's logits (B, classes); no gradient to these."""
        logits = weak.detach()
        if isinstance(self.gate, PlainGate):
            logits = logits.double()  # nearly certain ones must stay apart
        features = logits.softmax(-1).sort(-1, descending=True).values
        out: Tensor = self.gate(dispersion(logits), features)
        return out

    def both(self, x: Any, ctx: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the small and of the large network, and the confidence (B,)."""
        weak, strong = (
            chain(x, ctx.enter("leaf", ctx.leaf, name))
            for name, chain in (("weak", self.weak), ("strong", self.strong))
        )
        return weak, strong, self.score(weak).sigmoid()

    def forward(self, x: Any, ctx: Pass) -> Tensor:
        """Inputs to logits (B, classes), or probabilities with the quirk."""
        if x.is_meta or self.answer == "mix":  # shapes alone cannot say who answers
            weak, strong, confidence = self.both(x, ctx)
            if not self.quirk:
                return mixed(weak, strong, confidence)
            small, large = weak.softmax(-1), strong.softmax(-1)
            return mixed(small, large, self.score(small).sigmoid())
        logits: Tensor = self.weak(x, ctx.enter("leaf", ctx.leaf, "weak"))
        hard = self.hard(logits)
        ctx.stats[f"{ctx.leaf}.strong"] = hard.float().mean()
        rows = hard.nonzero()[:, 0]
        if len(rows):
            asked: Tensor = self.strong(x[rows], ctx.enter("leaf", ctx.leaf, "strong"))
            logits = logits.index_copy(0, rows, asked.to(logits.dtype))
        return logits

    def hard(self, weak: Tensor) -> Tensor:
        """Which inputs the large network is asked about, bool (B,)."""
        return self.score(weak) < self.threshold

    def matrices(self) -> dict[str, int]:
        """Those of both networks' leaves."""
        return {
            f"{part}.{position}.{name}": count
            for part, chain in (("weak", self.weak), ("strong", self.strong))
            for position, leaf in enumerate(chain.leaves)
            for name, count in leaf.matrices().items()
        }
