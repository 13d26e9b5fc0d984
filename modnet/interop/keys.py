"""Names of tensors: ours count leaves, published ones count blocks; both ways, and strict loading by them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from modnet.chain import Chain
from modnet.errors import RequestError

State = dict[str, Tensor]
EXPERT_LAYERS = {"fc1": "htoh4", "fc2": "h4toh"}
"""Our names of an expert's layers, and fastmoe's."""
_ONE_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(htoh4|h4toh)\.(weight|bias)")
_STACK = re.compile(r"(.*\bexperts)\.((?:htoh4|h4toh)\.(?:weight|bias))")


def stacked_experts(state: Mapping[str, Tensor]) -> State:
    """The same tensors with each layer of all experts in one, weight (E, out, in) and bias (E, out).

    fastmoe has written both layouts: so, and a tensor for each expert, (1, out, in) and (1, out).
    """
    found: dict[str, dict[int, Tensor]] = {}
    rest: State = {}
    for name, tensor in state.items():
        if match := _ONE_EXPERT.fullmatch(name):
            found.setdefault(f"{match[1]}.{match[3]}.{match[4]}", {})[int(match[2])] = tensor
        else:
            rest[name] = tensor
    return rest | {name: torch.cat([each[e] for e in sorted(each)]) for name, each in found.items()}


def split_experts(state: Mapping[str, Tensor]) -> State:
    """The same tensors with one for each expert; undoes :func:`stacked_experts`."""
    made: State = {}
    for name, tensor in state.items():
        if match := _STACK.fullmatch(name):
            made |= {f"{match[1]}.{e}.{match[2]}": part.clone() for e, part in enumerate(tensor.split(1))}
        else:
            made[name] = tensor
    return made


def published_names(chain: Chain) -> dict[str, str]:
    """Our name of every tensor of a chain → its name in timm and in the published code.

    Block ``g`` of the chain is ``blocks.{g}``, counted from 0 in this chain; stem and head have no prefix. A stitch
    right after a block is that block's ``post_stitch``, any other the next block's ``pre_stitch`` (m2mKD). Give a
    module for the names of a ``model_stages`` entry, a whole network for flat names. Experts are fastmoe's, stacked.
    """
    prefixes: dict[int, str] = {}
    block, previous = 0, ""
    for position, leaf in enumerate(chain.leaves):
        if leaf.role == "block":
            prefixes[position], block = f"blocks.{block}.", block + 1
        elif leaf.role == "stitch":
            after = previous == "block"
            side = f"{block - 1}.post" if after else f"{block}.pre"
            prefixes[position] = f"blocks.{side}_stitch."
        else:
            prefixes[position] = ""
        previous = leaf.role
    names = {}
    for ours in chain.state_dict():
        position_text, _, rest = ours.partition(".")
        for layer, theirs in EXPERT_LAYERS.items():
            rest = rest.replace(f"moe.experts.{layer}.", f"moe.experts.{theirs}.")
        names[ours] = prefixes[int(position_text)] + rest
    return names


def published_state(chain: Chain) -> State:
    """The chain's tensors under published names; see :func:`published_names`."""
    state, names = chain.state_dict(), published_names(chain)
    return {names[ours]: tensor for ours, tensor in state.items()}


@dataclass(frozen=True)
class Loaded:
    """Published names of tensors: ``loaded``, ``missing`` from the file, ``unexpected`` in the file.

    ``resized``: what was changed to fit, in words.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"resized: {', '.join(self.resized)}"] if self.resized else []
        parts += [f"missing: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"left out: {', '.join(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts)


def load_published(
    chain: Chain,
    state: Mapping[str, Tensor],
    source: str,
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> Loaded:
    """Copy tensors under published names into a chain and report what went where.

    Nothing is loaded where :func:`check_published` raises.
    """
    own = _by_published_name(chain)
    return load_named(chain, stacked_experts(state), own, source, allow_missing, allow_unexpected)


def load_named(
    chain: Chain,
    state: Mapping[str, Tensor],
    own: Mapping[str, str],
    source: str,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> Loaded:
    """As :func:`load_published`, with names of another layout: ``own`` gives ours for each of theirs."""
    report = check_named(chain, state, own, source, allow_missing, allow_unexpected)
    ours = chain.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            ours[own[name]].copy_(state[name])
    return report


def check_published(
    chain: Chain,
    state: Mapping[str, Tensor],
    source: str,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> Loaded:
    """What loading would do, without doing it.

    ``allow_missing`` and ``allow_unexpected`` are shell patterns of names that may be absent or left over. Raises
    RequestError naming every other missing, unexpected or misshapen tensor of ``source``.
    """
    own = _by_published_name(chain)
    return check_named(chain, stacked_experts(state), own, source, allow_missing, allow_unexpected)


def check_named(
    chain: Chain,
    state: Mapping[str, Tensor],
    own: Mapping[str, str],
    source: str,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> Loaded:
    """As :func:`check_published`, with names of another layout: ``own`` gives ours for each of theirs."""
    ours = chain.state_dict()
    missing = tuple(sorted(own.keys() - state.keys()))
    unexpected = tuple(sorted(state.keys() - own.keys()))
    common = tuple(name for name in own if name in state)
    shapes = [
        f"{name} is {list(state[name].shape)}, the network wants {list(ours[own[name]].shape)}"
        for name in common
        if state[name].shape != ours[own[name]].shape
    ]
    faults = _listed("missing", _refused(missing, allow_missing))
    faults += _listed("unexpected", _refused(unexpected, allow_unexpected))
    faults += _listed("of another shape", shapes)
    if faults:
        raise RequestError(f"{source} does not fit this network: {'; '.join(faults)}")
    return Loaded(common, missing, unexpected)


def _by_published_name(chain: Chain) -> dict[str, str]:
    return {theirs: ours for ours, theirs in published_names(chain).items()}


def _refused(names: Iterable[str], allowed: Iterable[str]) -> list[str]:
    patterns = list(allowed)
    return [name for name in names if not any(fnmatchcase(name, p) for p in patterns)]


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
