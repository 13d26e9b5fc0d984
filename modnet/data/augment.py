"""Builders of the registered augmentations; what a sample becomes depends on its key and number alone.

*Pixel* augmentations change uint8 images, in the order given; *mixing* ones then blend a batch of
normalised images, and their targets, with their neighbours.
"""

from __future__ import annotations

from modnet.data import mixing, pixels
from modnet.data import randaugment as rand
from modnet.data.mixing import Mixing
from modnet.data.pixels import Pixels
from modnet.recipe.training import Crop, CutMix, Erase, Flip, Mixup, MixupOrCutMix, RandAugment, ResizedCrop


def crop(params: Crop) -> Pixels:
    """The registered ``crop``."""
    return pixels.RandomCrop(params.pad)


def resized_crop(params: ResizedCrop) -> Pixels:
    """The registered ``resized-crop``."""
    return pixels.RandomResizedCrop(params.scale, params.ratio)


def flip(params: Flip) -> Pixels:
    """The registered ``flip``."""
    return pixels.RandomFlip(params.p)


def erase(params: Erase) -> Pixels:
    """The registered ``erase``."""
    return pixels.RandomErase(params.p, params.area)


def randaugment(params: RandAugment) -> Pixels:
    """The registered ``randaugment``."""
    return rand.RandAugment(params.ops, params.m, params.std)


def mixup(params: Mixup) -> Mixing:
    """The registered ``mixup``."""
    return mixing.Mixup(params.alpha, params.p)


def cutmix(params: CutMix) -> Mixing:
    """The registered ``cutmix``."""
    return mixing.CutMix(params.alpha, params.p)


def mixup_cutmix(params: MixupOrCutMix) -> Mixing:
    """The registered ``mixup-cutmix``."""
    return mixing.MixupOrCutMix(params.mixup, params.cutmix, params.switch, params.p)


__all__ = [
    "Mixing",
    "Pixels",
    "crop",
    "cutmix",
    "erase",
    "flip",
    "mixup",
    "mixup_cutmix",
    "randaugment",
    "resized_crop",
]
