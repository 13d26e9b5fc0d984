"""What a cascade of a small and a large network asks of the large one, and what that costs."""

from __future__ import annotations

from torch import nn

from modnet.chain import Chain, Port
from modnet.evaluation.accuracy import Images, Normaliser, evaluating, logits_of
from modnet.evaluation.cost import cost
from modnet.layers.confidence import Cascade


def strong_share(cascade: Cascade, images: Images, dataset: Normaliser, batch: int = 512) -> float:
    """The share of the images, 0 to 1, that the large network is asked about; 1 where both always answer."""
    if cascade.answer == "mix":
        return 1.0
    asked = count = 0
    with evaluating(Chain([cascade])):
        for logits, _ in logits_of(cascade.weak, images, dataset, batch):
            asked += int(cascade.hard(logits).sum())
            count += len(logits)
    return asked / count


def mean_macs(cascade: Cascade, port: Port, share: float) -> float:
    """Multiply-adds of one image on average: small network and gate, and ``share`` of the large one's."""
    gate = sum(layer.weight.numel() for layer in cascade.gate.modules() if isinstance(layer, nn.Linear))
    return cost(cascade.weak, port).macs + gate + share * cost(cascade.strong, port).macs
