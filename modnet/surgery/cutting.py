"""Cutting a chain into modules and joining modules into a chain: inverse to each other, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from modnet.chain import Chain
from modnet.errors import RequestError


def cut(chain: Chain, depths: Sequence[int]) -> Chain:
    """The same leaves grouped into ``len(depths)`` modules of ``depths`` blocks.

    The stem belongs to the first module and the head to the last; a stitch belongs to the block that follows it.
    Parameters are shared and keep their names. Raises RequestError if the depths do not add up to the blocks.
    Source: Deep Incubation (arXiv 2212.04129), the split rule.
    """
    ends = [position + 1 for position, leaf in enumerate(chain.leaves) if leaf.role == "block"]
    if not depths or min(depths) < 1 or sum(depths) != len(ends):
        raise RequestError(
            f"depths {list(depths)} add up to {sum(depths)} blocks, but the network has {len(ends)}; "
            "every module needs at least one block"
        )
    inner = [ends[total - 1] for total in list(accumulate(depths))[:-1]]
    return chain.divided([0, *inner, len(chain.leaves)])


def assemble(modules: Iterable[Chain]) -> Chain:
    """The modules joined in order, sharing their parameters; raises PortMismatch where two do not fit."""
    network = Chain()
    for module in modules:
        network = network + module
    return network


def near_equal(blocks: int, modules: int) -> tuple[int, ...]:
    """``blocks`` divided over at most ``modules`` modules whose depths differ by at most one."""
    modules = max(1, min(modules, blocks))
    each, more = divmod(blocks, modules)
    return tuple(each + (i < more) for i in range(modules))
