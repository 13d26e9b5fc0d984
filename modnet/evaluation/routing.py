"""What routers do on a set of images: how experts are used, by which classes, and which patches go where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modnet.chain import Chain, Pass
from modnet.evaluation.accuracy import Images, Normaliser, evaluating
from modnet.layers.block import AttentionBlock
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoE, MoEBlock
from modnet.randomness import Key

SHUFFLES = 20  # of labels, whose mutual information with experts is what chance gives


@dataclass(frozen=True)
class LayerRouting:
    """What one router of a block did with N images; counts are int64, on the CPU.

    ``pairs`` (N, E): choices of an image's tokens by expert, before dropping. ``labels`` (N,). ``together`` (E, E): how
    many tokens chose both experts. ``kept``: pairs that found a place; ``lost``: tokens that found none. ``certain``,
    ``mean_probs`` (E,): the mean entropy of a token's probabilities (nats), and these probabilities' mean. ``patches``
    (n, h, w): the first choice of every patch of the images that are shown; None where patches form no grid. ``part``:
    ``heads`` where the experts are heads of attention.
    """

    block: int
    top_k: int
    pairs: Tensor
    labels: Tensor
    together: Tensor
    kept: int
    lost: int
    certain: float
    mean_probs: Tensor
    patches: Tensor | None
    part: str = ""

    @property
    def label(self) -> str:
        """The block, and the part of it where that is not its perceptron."""
        return f"block {self.block}" + (f" {self.part}" if self.part else "")

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.pairs.shape[1]

    @property
    def load(self) -> Tensor:
        """Each expert's share of all pairs (E,), float64."""
        return self.pairs.sum(0).double() / self.pairs.sum()

    def by_class(self, labels: Tensor | None = None) -> Tensor:
        """Pairs by class and expert (classes, E), float64; ``labels`` other than the images' own give a baseline."""
        labels = self.labels if labels is None else labels
        return F.one_hot(labels).double().T @ self.pairs.double()

    def numbers(self) -> dict[str, float]:
        """The layer in numbers; entropies are shares of ln E, information is in nats.

        ``load_cv``: deviation of the experts' loads over their mean; ``dead``: experts without a token; ``dropped``:
        share of pairs, ``lost`` of tokens, without a place; ``token_entropy`` and ``marginal_entropy``; ``class_mi``:
        mutual information of class and expert, ``class_nmi`` as a share of the smaller entropy, ``class_mi_chance``
        what shuffled labels give, as finite counts are never quite independent.
        """
        total, most = int(self.pairs.sum()), math.log(max(2, self.experts))
        joint = self.by_class()
        least = min(entropy(joint.sum(0)), entropy(joint.sum(1)))
        found = mutual_information(joint)
        return {
            "load_cv": float(self.load.std(correction=0) / self.load.mean()),
            "load_max": float(self.load.max() / self.load.mean()),
            "dead": float((self.load == 0).sum()),
            "dropped": 1 - self.kept / total,
            "lost": self.lost / (total / self.top_k),
            "token_entropy": self.certain / most,
            "marginal_entropy": entropy(self.mean_probs.double()) / most,
            "class_mi": found,
            "class_nmi": found / least if least > 0 else 0.0,
            "class_mi_chance": self.chance(),
        }

    def chance(self) -> float:
        """The mutual information that labels in no order have with experts: the mean over several shuffles."""
        orders = (Key.of(0, "shuffled", n).permutation(len(self.labels)) for n in range(SHUFFLES))
        return sum(mutual_information(self.by_class(self.labels[order])) for order in orders) / SHUFFLES


def entropy(weights: Tensor) -> float:
    """Entropy in nats of weights that need not add up to 1."""
    return float(torch.special.entr(weights / weights.sum()).sum())


def mutual_information(joint: Tensor) -> float:
    """Of the rows and columns of a table of counts, in nats: Σ J ln(J / (J_r J_c)), never below 0."""
    return max(0.0, entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.flatten()))


@dataclass(frozen=True)
class Observed:
    """Layers by the name of their statistics in a pass, and the images whose patches they keep.

    These are uint8 (n, C, H, W), with labels (n,).
    """

    layers: dict[str, LayerRouting]
    images: Tensor
    labels: Tensor


def observe(chain: Chain, images: Images, dataset: Normaliser, batch: int = 512, each: int = 1) -> Observed:
    """What every router of a chain does with a set of images.

    ``each``: of so many images of every class, the first, it is kept where their patches go. Capacities act as in
    evaluation, so ``batch`` can matter. Raises ValueError for a chain without experts.
    """
    tallies = _tallies(chain)
    if not tallies:
        raise ValueError("the chain has no experts")
    wanted = frozenset(int(name.partition(".")[0]) for name in tallies)
    device = next((p.device for p in chain.parameters()), torch.device("cpu"))
    shown = _Shown(each)
    with evaluating(chain):
        for stored, labels in images.batches(batch):
            ctx = Pass(wanted=wanted)
            chain(dataset.normalise(stored.to(device)), ctx)
            rows = shown.rows(stored, labels)
            for name, tally in tallies.items():
                tally.add(_of_layer(ctx.stats, name), labels.cpu(), rows)
    order = torch.cat(shown.labels).argsort(stable=True)
    layers = {name: tally.routing(order) for name, tally in tallies.items()}
    return Observed(layers, torch.cat(shown.images)[order], torch.cat(shown.labels)[order])


def _tallies(chain: Chain) -> dict[str, _Tally]:
    """Empty sums for every mixture of a ViT's blocks, in the order of a pass."""
    found = {}
    blocks = [at for at, leaf in enumerate(chain.leaves) if leaf.role == "block"]
    for at, leaf in enumerate(chain.leaves):
        if isinstance(leaf, AttentionBlock) and isinstance(leaf.attn, HeadExperts):
            found[f"{at}.attention"] = _Tally(leaf, leaf.attn, blocks.index(at), "heads")
        if isinstance(leaf, MoEBlock):
            found[str(at)] = _Tally(leaf, leaf.moe, blocks.index(at))
    return found


def _of_layer(stats: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: stats[f"{layer}.{name}"].cpu() for name in ("experts", "kept", "probs")}


class _Shown:
    """The first images of every class."""

    def __init__(self, each: int) -> None:
        self.each, self.of_class = each, Counter[int]()
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []

    def rows(self, images: Tensor, labels: Tensor) -> list[int]:
        """Which rows of a batch they are."""
        found = []
        for row, label in enumerate(labels.tolist()):
            if self.of_class[label] < self.each:
                self.of_class[label] += 1
                found.append(row)
        self.images.append(images[found].cpu().clone())
        self.labels.append(labels[found].cpu().clone())
        return found


class _Tally:
    """Sums over batches, of one layer."""

    def __init__(self, leaf: AttentionBlock, mixture: MoE | HeadExperts, block: int, part: str = "") -> None:
        self.count, self.top_k, self.block, self.part = mixture.count, mixture.top_k, block, part
        port = leaf.takes
        self.grid: tuple[int, int] | None = port["grid"] if port is not None else None
        self.prefix = int(port["prefix"] or 0) if port is not None else 0
        self.pairs: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.patches: list[Tensor] = []
        self.together = torch.zeros(self.count, self.count, dtype=torch.int64)
        self.probs = torch.zeros(self.count, dtype=torch.float64)
        self.kept = self.lost = self.tokens = 0
        self.certain = 0.0

    def add(self, found: dict[str, Tensor], labels: Tensor, rows: list[int]) -> None:
        """Count a batch: experts and kept (b, n, K), probs (b, n, E), labels (b,); ``rows`` are shown."""
        experts, kept, probs = found["experts"], found["kept"], found["probs"][..., : self.count].double()
        probs /= probs.sum(-1, keepdim=True)  # rows of pruned experts may have had a part
        chosen = F.one_hot(experts, self.count).sum(2)
        self.pairs.append(chosen.sum(1).clone())
        self.labels.append(labels.clone())
        flat = chosen.flatten(0, 1)
        self.together += flat.T @ flat
        self.kept += int(kept.sum())
        self.lost += int((~kept).all(-1).sum())
        self.probs += probs.sum((0, 1))
        self.certain += float(torch.special.entr(probs).sum())
        self.tokens += flat.shape[0]
        if self.grid is not None:
            self.patches.append(experts[rows, self.prefix :, 0].unflatten(1, self.grid).clone())

    def routing(self, order: Tensor) -> LayerRouting:
        """All that was counted, the shown images in this order."""
        return LayerRouting(
            self.block,
            self.top_k,
            torch.cat(self.pairs),
            torch.cat(self.labels),
            self.together,
            self.kept,
            self.lost,
            self.certain / self.tokens,
            self.probs / self.tokens,
            torch.cat(self.patches)[order] if self.patches else None,
            self.part,
        )


def summary(layers: Mapping[str, LayerRouting]) -> dict[str, Any]:
    """Every layer's numbers and loads as plain data, by ``block N`` or ``block N heads``."""
    return {layer.label: {**layer.numbers(), "load": layer.load.tolist()} for layer in layers.values()}
