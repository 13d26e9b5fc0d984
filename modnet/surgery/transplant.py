"""Moving the tensors of taught modules into a whole network, with a report of what went where."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modnet.chain import Chain, Module
from modnet.errors import RequestError
from modnet.surgery.stitching import is_stitch


@dataclass
class Report:
    """Names of tensors: ``loaded`` into the network, ``left`` as it had them, ``dropped`` from the students."""

    loaded: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.loaded)} tensors loaded, {len(self.left)} left as they were, {len(self.dropped)} dropped"


def transplant(students: Sequence[Chain], network: Chain) -> Report:
    """Copy the students' leaves into the leaves of ``network`` in order.

    Stitches are loaded where the network has the same ones between the same leaves; otherwise the students' are
    dropped and the network's own are left. Raises RequestError if other leaves do not pair up or a tensor has another
    shape: nothing is loaded in part. Source: m2mKD (arXiv 2402.16918), loading of distilled modules; unlike the
    reference no mismatch is passed over.
    """
    pairs, dropped = _paired([leaf for student in students for leaf in student.leaves], network)
    for position, source in pairs.items():
        _check(position, source, network.leaves[position])
    report = Report(dropped=dropped)
    for position, source in pairs.items():
        state = source.state_dict()
        network.leaves[position].load_state_dict(state)
        report.loaded += [f"{position}.{name}" for name in state]
    report.left = sorted(network.state_dict().keys() - set(report.loaded))
    return report


def own_module(network: Chain, i: int, width: int) -> Chain:
    """Module ``i`` of the network itself, whatever the ``width`` around it: stitches make it fit."""
    return network[i]


@dataclass(frozen=True)
class Family:
    """How modules of a model family are taught and moved.

    ``student(network, i, width)``: what learns in the place of the network's module ``i`` among tokens of ``width``.
    ``transplant(students, network)``: loads what was learned into the network. ``whole``: the students in a row are a
    network of the family; where they are not, only transplanting makes one, and ``assemble`` joins nothing.
    """

    student: Callable[[Chain, int, int], Chain] = own_module
    transplant: Callable[[Sequence[Chain], Chain], Report] = transplant
    whole: bool = True


def family_of(builder: Callable[..., Chain]) -> Family:
    """The ``FAMILY`` of the file that defines a model's builder; without one, modules stand for themselves."""
    own = getattr(sys.modules[builder.__module__], "FAMILY", None)
    return own if isinstance(own, Family) else Family()


def _paired(taught: Sequence[Module], network: Chain) -> tuple[dict[int, Module], list[str]]:
    """The student's leaf for each position of the network that gets one, and the names of dropped tensors."""
    theirs, own = _by_gap(taught), _by_gap(network.leaves)
    if len(theirs) != len(own):
        raise RequestError(f"{len(theirs) - 1} taught leaves do not fill a network of {len(own) - 1}, stitches aside")
    pairs: dict[int, Module] = {}
    dropped: list[str] = []
    for (stitches, leaf), (own_stitches, own_leaf) in zip(theirs, own, strict=True):
        if [_shapes(taught[i]) for i in stitches] == [_shapes(network.leaves[i]) for i in own_stitches]:
            pairs |= {i: taught[j] for i, j in zip(own_stitches, stitches, strict=True)}
        else:
            dropped += [f"{type(taught[i]).__name__}.{name}" for i in stitches for name in taught[i].state_dict()]
        if leaf is not None and own_leaf is not None:
            pairs[own_leaf] = taught[leaf]
    return pairs, dropped


def _by_gap(leaves: Sequence[Module]) -> list[tuple[list[int], int | None]]:
    """Positions of the stitches in front of each other leaf, and of that leaf; None after the last."""
    found: list[tuple[list[int], int | None]] = []
    stitches: list[int] = []
    for position, leaf in enumerate(leaves):
        if is_stitch(leaf):
            stitches.append(position)
        else:
            found.append((stitches, position))
            stitches = []
    return [*found, (stitches, None)]


def _shapes(leaf: Module) -> tuple[type[Module], dict[str, tuple[int, ...]]]:
    return type(leaf), {name: tuple(tensor.shape) for name, tensor in leaf.state_dict().items()}


def _check(position: int, source: Module, target: Module) -> None:
    (_, have), (_, want) = _shapes(source), _shapes(target)
    if have != want:
        odd = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        shapes = ", ".join(f"{name} {have.get(name, 'missing')} for {want.get(name, 'none')}" for name in odd)
        raise RequestError(f"leaf {position} ({type(source).__name__}) cannot be loaded: {shapes}")
