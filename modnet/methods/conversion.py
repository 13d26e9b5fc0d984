"""``run: route`` with experts in the place of a trained network's dense blocks, then training on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modnet.chain import Chain
from modnet.engine.job import Metrics
from modnet.evaluation.accuracy import measure
from modnet.layers.adapters import see
from modnet.layers.moe import MoEBlock
from modnet.methods.base import BEFORE, NETWORK, Inputs, Kept
from modnet.methods.supervised import WholeMethod
from modnet.randomness import Key
from modnet.recipe.routing import Converted, Split, Upcycle
from modnet.surgery.conversion import block_numbers, expert_blocks
from modnet.surgery.splitting import split
from modnet.surgery.upcycling import upcycled


class Conversion(WholeMethod):
    """Surgery on the dense network of an earlier stage, then training with labels and the routers' own losses."""

    def __init__(self, stage: Converted, inputs: Inputs) -> None:
        super().__init__(stage, inputs)
        self.key = self.key.fold(inputs.keys[stage.from_])  # other shuffles and draws than the earlier stage had
        dense = see(inputs.stored(stage.from_, NETWORK), self.dataset.mean, self.dataset.std)
        self.chain = self.with_drop_path(self.convert(dense, stage, self.key.fold("surgery")))
        self.before = self.chain.cloned()
        self.dense_top1, self.before_top1 = (
            measure(c, self.dataset.val, self.dataset).top1 for c in (dense, self.before)
        )
        inputs.say(
            f"{told(self.chain)}; before training {self.before_top1:.2f} % on val, the dense network "
            f"{self.dense_top1:.2f} %"
        )

    def convert(self, dense: Chain, stage: Any, key: Key) -> Chain:
        """The network with experts."""
        raise NotImplementedError

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """The trained network, the one before training, and what both and the dense one score on val."""
        facts = {"before_val_top1": self.before_top1, "dense_val_top1": self.dense_top1}
        return Kept({NETWORK: self.chain, BEFORE: self.before}, facts)


class Upcycling(Conversion):
    """``method: upcycle``."""

    def convert(self, dense: Chain, stage: Upcycle, key: Key) -> Chain:
        return upcycled(dense, stage, key)


class Splitting(Conversion):
    """``method: split``."""

    def convert(self, dense: Chain, stage: Split, key: Key) -> Chain:
        return split(dense, stage, key)


def told(chain: Chain) -> str:
    """Which blocks hold how many experts, in words."""
    numbers = block_numbers(chain)
    kinds: dict[tuple[int, int, int], list[int]] = {}
    for at, block in expert_blocks(chain).items():
        kinds.setdefault(shape_of(block), []).append(numbers[at])
    return "; ".join(
        f"block{'s' * (len(held) > 1)} {', '.join(map(str, held))}: {experts} experts of {hidden} hidden units, "
        f"{top_k} for each token"
        for (experts, hidden, top_k), held in kinds.items()
    )


def shape_of(block: MoEBlock) -> tuple[int, int, int]:
    """Experts, hidden units of each, experts for each token."""
    return block.moe.count, block.moe.experts.fc1.weight.shape[1], block.moe.top_k
