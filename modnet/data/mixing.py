"""Mixing of neighbours: mixup and CutMix with their targets, drawn per sample.

The partner of a row is the next row of the batch, cyclic, which is its neighbour in the epoch's order.
"""

from __future__ import annotations

import torch
from scipy.special import betaincinv
from torch import Tensor

from modnet.data.pixels import inside
from modnet.randomness import Key


class Mixing:
    """An augmentation across the batch; ``p`` is the probability that a sample is mixed."""

    p: float = 1.0

    def apply(self, x: Tensor, target: Tensor, key: Key, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and targets, the shapes unchanged.

        ``x``: float32 (B, C, H, W), normalised. ``target``: float32 (B, classes), rows that sum to 1.
        """
        raise NotImplementedError

    def chosen(self, key: Key, ids: Tensor) -> Tensor:
        """Which samples are mixed, bool (B,)."""
        return key.fold("whether").uniform(ids, 1)[:, 0] < self.p


def share(key: Key, ids: Tensor, alpha: float) -> Tensor:
    """The share of its own image that each sample keeps: Beta(alpha, alpha), float32 (B,)."""
    uniform = key.fold("share").uniform(ids, 1)[:, 0]
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().cpu().numpy())).to(uniform)


def blended(values: Tensor, keep: Tensor) -> Tensor:
    """``keep`` (B,) of each row and the rest of the next row."""
    keep = keep.view(-1, *[1] * (values.dim() - 1))
    return keep * values + (1 - keep) * values.roll(-1, 0)


class Mixup(Mixing):
    """See :class:`modnet.recipe.training.Mixup`."""

    def __init__(self, alpha: float, p: float) -> None:
        self.alpha, self.p = alpha, p

    def apply(self, x: Tensor, target: Tensor, key: Key, ids: Tensor) -> tuple[Tensor, Tensor]:
        keep = torch.where(self.chosen(key, ids), share(key, ids, self.alpha), 1.0)
        return blended(x, keep), blended(target, keep)


class CutMix(Mixing):
    """See :class:`modnet.recipe.training.CutMix`."""

    def __init__(self, alpha: float, p: float) -> None:
        self.alpha, self.p = alpha, p

    def apply(self, x: Tensor, target: Tensor, key: Key, ids: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        pasted = inside(self.boxes(key, ids, height, width), height, width)
        pasted &= self.chosen(key, ids).view(-1, 1, 1, 1)
        keep = 1 - pasted.sum((1, 2, 3)) / (height * width)
        return torch.where(pasted, x.roll(-1, 0), x), blended(target, keep)

    def boxes(self, key: Key, ids: Tensor, height: int, width: int) -> Tensor:
        """Each sample's box: a share of the image drawn from Beta, its centre anywhere, cut off at the border."""
        side = (1 - share(key, ids, self.alpha)).sqrt()
        down, right = key.fold("centre").uniform(ids, 2).unbind(1)
        edges = []
        for centre, length in ((down, height), (right, width)):
            middle, half = (centre * length).floor(), (side * length / 2).floor()
            edges.append(((middle - half).clamp(0, length), (middle + half).clamp(0, length)))
        (top, bottom), (left, right) = edges
        return torch.stack([top, left, bottom, right], 1).long()


class MixupOrCutMix(Mixing):
    """See :class:`modnet.recipe.training.MixupOrCutMix`; ``switch`` is the probability of CutMix."""

    def __init__(self, mixup: float, cutmix: float, switch: float, p: float) -> None:
        self.mixup, self.cutmix, self.switch, self.p = Mixup(mixup, p), CutMix(cutmix, p), switch, p

    def apply(self, x: Tensor, target: Tensor, key: Key, ids: Tensor) -> tuple[Tensor, Tensor]:
        cut = key.fold("switch").uniform(ids, 1)[:, 0] < self.switch
        blended_x, blended_target = self.mixup.apply(x, target, key.fold("mixup"), ids)
        cut_x, cut_target = self.cutmix.apply(x, target, key.fold("cutmix"), ids)
        return torch.where(cut.view(-1, 1, 1, 1), cut_x, blended_x), torch.where(
            cut[:, None], cut_target, blended_target
        )
