"""Surgery on mixtures of experts: count their use, remove experts, add some, hold the old ones still."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modnet.chain import Chain, Pass, describe, rebuild
from modnet.errors import RequestError
from modnet.layers.expert_attention import ExpertAttention
from modnet.layers.head_experts import HeadExperts
from modnet.layers.moe import MoE
from modnet.layers.stacked import StackedLinear
from modnet.randomness import Key

Mixture = MoE | ExpertAttention | HeadExperts
Place = tuple[int, str]  # a leaf's position, and the name of the mixture in it


class Texts(Protocol):
    """Anything that gives batches in order."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]: ...


def mixtures(chain: Chain) -> dict[Place, Mixture]:
    """Every mixture of a chain; raises RequestError if there is none."""
    found: dict[Place, Mixture] = {}
    for position, leaf in enumerate(chain.leaves):
        for name in getattr(leaf, "holds", {}):
            part = getattr(leaf, name)
            assert isinstance(part, Mixture)
            found[position, name] = part
    if not found:
        raise RequestError("the network has no experts; this stage is for networks such as vmoe or moduleformer")
    return found


def usage(chain: Chain, images: Texts, dataset: Any, batch: int = 64) -> dict[Place, Tensor]:
    """The share of choices that each expert got, (E,) for every mixture; the chain must be in evaluation mode."""
    sums: dict[Place, Tensor] = {place: torch.zeros(part.count) for place, part in mixtures(chain).items()}
    total = 0
    device = next(chain.parameters()).device
    for stored, _ in images.batches(batch):
        ctx = Pass()
        chain(dataset.normalise(stored.to(device)), ctx)
        total += len(stored)
        for position, name in sums:
            key = f"{position}.attention.load" if name == "attn" else f"{position}.load"
            sums[position, name] += ctx.stats[key].cpu() * len(stored)
    return {place: found / total for place, found in sums.items()}


def chosen(share: Tensor, top_k: int, keep: float | None, least: float | None) -> list[int]:
    """The numbers of the experts to keep, ascending: the most used ``keep`` of them, or those used at least so much.

    Never fewer than ``top_k``; of equally used ones the first.
    """
    order = share.argsort(descending=True, stable=True)
    count = math.ceil(keep * len(share) - 1e-9) if keep is not None else int((share >= (least or 0)).sum())
    return sorted(order[: max(count, top_k)].tolist())


def pruned(chain: Chain, kept: Mapping[Place, list[int]], rows: Literal["keep", "drop"] = "keep") -> Chain:
    """A network on its own storage with the ``kept`` experts alone, in their order.

    ``rows: keep`` leaves a removed expert's row in its router's softmax, where it can no longer be chosen: what was
    never chosen is then removed without any change. Raises RequestError if a router cannot keep rows.
    """
    places = mixtures(chain)
    sizes = {place: (len(kept[place]), part.count - len(kept[place])) for place, part in places.items()}
    silent = {place: lost if rows == "keep" else 0 for place, (_, lost) in sizes.items()}
    smaller = _resized(chain, {place: size for place, (size, _) in sizes.items()}, silent)
    for place, new in mixtures(smaller).items():
        old, live = places[place], kept[place]
        lost = [e for e in range(old.count) if e not in live] if rows == "keep" else []
        quiet = range(old.count, old.count + _silent(old))
        for (_, target, router), (_, source, _) in zip(_tables(new), _tables(old), strict=True):
            target.data.copy_(source.data[[*live, *lost, *quiet] if router else live])
        _settle(new)
    return smaller


def grown(chain: Chain, added: int, key: Key) -> Chain:
    """A network on its own storage with ``added`` fresh experts behind the old ones of every mixture."""
    places = mixtures(chain)
    with key.fold("grow").forked():
        larger = _resized(chain, {place: part.count + added for place, part in places.items()}, {})
    for place, new in mixtures(larger).items():
        old = places[place]
        for (_, target, _), (_, source, _) in zip(_tables(new), _tables(old), strict=True):
            target.data[: old.count] = source.data[: old.count]
            target.data[old.count + added :] = source.data[old.count :]
        _settle(new)
    return larger


def _settle(part: Mixture) -> None:
    if not isinstance(part, ExpertAttention):
        part.settle()


class NewRows(nn.Module):
    """A parametrization: of a table's rows only ``added`` behind the first ``first`` learn, the others are fixed."""

    above: Tensor
    below: Tensor

    def __init__(self, table: Tensor, first: int, added: int) -> None:
        super().__init__()
        self.first, self.added = first, added
        self.register_buffer("above", table.detach()[:first].clone())
        self.register_buffer("below", table.detach()[first + added :].clone())

    def forward(self, new: Tensor) -> Tensor:
        """The whole table."""
        return torch.cat([self.above, new, self.below])

    def right_inverse(self, table: Tensor) -> Tensor:
        """The rows that learn."""
        return table[self.first : self.first + self.added].clone()


def hold_old(chain: Chain, added: int) -> list[Tensor]:
    """Freeze all but the last ``added`` experts of every mixture, in place; the router rows of these are given."""
    chain.requires_grad_(False)
    rows = []
    for part in mixtures(chain).values():
        for owner, name, router in list(_owned(part)):
            table = getattr(owner, name)
            parametrize.register_parametrization(owner, name, NewRows(table, part.count - added, added))
            original = owner.parametrizations[name].original  # type: ignore[index, union-attr]
            original.requires_grad_(True)
            if router:
                rows.append(original)
    return rows


def released(chain: Chain) -> Chain:
    """The same network with plain tensors again, all trainable."""
    for part in mixtures(chain).values():
        for module in list(part.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return chain.requires_grad_(True)


def reweighted(chain: Chain, **weights: float) -> Chain:
    """A network on its own storage whose routers have other loss weights; raises RequestError for one without them."""
    description = describe(chain)
    for position, name in mixtures(chain):
        _, router = _arguments(chain, (position, name))
        held = description["leaves"][position]
        unknown = sorted(set(weights) - set(held[router]))
        if unknown:
            raise RequestError(f"router {held[router]['name']} has no {unknown[0]}")
        held[router] = held[router] | weights
    twin = rebuild(description).to(next(chain.parameters()).device)
    twin.load_state_dict(chain.state_dict())
    return twin


def _resized(chain: Chain, counts: Mapping[Place, int], silent: Mapping[Place, int]) -> Chain:
    """The network rebuilt with other numbers of experts; what is not of experts is copied."""
    description = describe(chain)
    for (position, name), count in counts.items():
        experts, router = _arguments(chain, (position, name))
        held = description["leaves"][position]
        held[experts] = count
        more = silent.get((position, name), 0)
        if more:
            if "silent" not in held[router]:
                raise RequestError(
                    f"router {held[router]['name']} cannot keep the rows of pruned experts; prune with rows: drop"
                )
            held[router] = held[router] | {"silent": held[router]["silent"] + more}
    made = rebuild(description).to(next(chain.parameters()).device)
    old = chain.state_dict()
    for name, tensor in made.state_dict().items():
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
    return made


def _arguments(chain: Chain, place: Place) -> tuple[str, str]:
    """The names of a leaf's arguments that say how many experts a mixture has, and which router."""
    position, name = place
    holds: dict[str, tuple[str, str]] = getattr(chain.leaves[position], "holds", {})
    return holds[name]


def _silent(part: Mixture) -> int:
    return int(getattr(part.params, "silent", 0))


def _owned(part: Mixture) -> Iterator[tuple[nn.Module, str, bool]]:
    """Every table with a row for each expert: its module, its name there, and whether it is the router's."""
    for module in part.modules():
        if isinstance(module, StackedLinear):
            yield module, "weight", False
            if getattr(module, "bias", None) is not None:
                yield module, "bias", False
    for owner, name in part.gate.tables():
        yield owner, name, True


def _tables(part: Mixture) -> Iterator[tuple[str, Tensor, bool]]:
    for owner, name, router in _owned(part):
        yield name, getattr(owner, name), router


__all__ = ["NewRows", "chosen", "grown", "hold_old", "mixtures", "pruned", "released", "reweighted", "usage"]
