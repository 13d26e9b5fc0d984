"""``run: route`` with experts in the place of a trained network's dense blocks, then training on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modnet.chain import Chain, Module
from modnet.engine.job import Metrics
from modnet.layers.adapters import see
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoEBlock
from modnet.methods.base import BEFORE, NETWORK, Inputs, Kept
from modnet.methods.supervised import WholeMethod
from modnet.randomness import Key
from modnet.recipe.routing import Converted, Split, Upcycle
from modnet.surgery.conversion import block_numbers
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
        self.dense_top1, self.before_top1 = (inputs.val_top1(c, self.dataset) for c in (dense, self.before))
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
    kinds: dict[str, list[int]] = {}
    for at, leaf in enumerate(chain.leaves):
        for shape in shapes_of(leaf):
            kinds.setdefault(shape, []).append(numbers[at])
    return "; ".join(
        f"block{'s' * (len(held) > 1)} {', '.join(map(str, held))}: {shape} for each token"
        for shape, held in kinds.items()
    )


def shapes_of(leaf: Module) -> Iterator[str]:
    """A block's mixtures in words: experts, what each is, and how many a token goes to."""
    heads = getattr(leaf, "attn", None)
    if isinstance(heads, HeadExperts):
        each = heads.query.weight.shape[1] // heads.size
        yield f"{heads.count} experts of {each} head{'s' * (each > 1)} of attention, {heads.top_k}"
    if isinstance(leaf, MoEBlock):
        moe = leaf.moe
        yield f"{moe.count} experts of {moe.experts.fc1.weight.shape[1]} hidden units, {moe.top_k}"
