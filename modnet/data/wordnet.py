"""The classes of ImageNet and of its relatives: WordNet ids in sorted order, which is the order of the labels."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Literal

Family = Literal["imagenet", "tiny", "r"]


@functools.cache
def wnids(*families: Family) -> tuple[str, ...]:
    """The WordNet ids that are in every family, sorted.

    ``imagenet``: the 1,000 of ILSVRC 2012. ``tiny``: the 200 of Tiny-ImageNet. ``r``: the 200 of ImageNet-R
    (Hendrycks et al. 2021). ``wnids("tiny", "r")`` are the 62 of Tiny-ImageNet-R.
    """
    rows = [line.split() for line in files("modnet.data").joinpath("wnids.txt").read_text("utf-8").splitlines()]
    return tuple(wnid for wnid, *member in rows if {"imagenet", *member}.issuperset(families))
