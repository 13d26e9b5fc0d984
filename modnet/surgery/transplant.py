"""Moving the tensors of taught modules into a whole network, with a report of what went where."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Copy the students' leaves, stitches aside, into the leaves of ``network`` in order.

    Raises RequestError if the leaves do not pair up or a tensor has another shape: nothing is loaded in part.
    Source: m2mKD (arXiv 2402.16918), loading of distilled modules; unlike the reference no mismatch is passed over.
    """
    taught = assemble_loose(students)
    stitches = [leaf for leaf in taught if is_stitch(leaf)]
    sources = [leaf for leaf in taught if not is_stitch(leaf)]
    if len(sources) != len(network.leaves):
        raise RequestError(f"{len(sources)} taught leaves do not fill a network of {len(network.leaves)}")
    for position, (source, target) in enumerate(zip(sources, network.leaves, strict=True)):
        _check(position, source, target)
    report = Report()
    for position, (source, target) in enumerate(zip(sources, network.leaves, strict=True)):
        target.load_state_dict(source.state_dict())
        report.loaded += [f"{position}.{name}" for name in source.state_dict()]
    report.dropped = [f"{type(s).__name__}.{name}" for s in stitches for name in s.state_dict()]
    return report


def assemble_loose(students: Sequence[Chain]) -> list[Module]:
    """All leaves of the students in order, whether or not they fit each other."""
    return [leaf for student in students for leaf in student.leaves]


def _check(position: int, source: Module, target: Module) -> None:
    have = {name: tuple(t.shape) for name, t in source.state_dict().items()}
    want = {name: tuple(t.shape) for name, t in target.state_dict().items()}
    if have != want:
        odd = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        shapes = ", ".join(f"{name} {have.get(name, 'missing')} for {want.get(name, 'none')}" for name in odd)
        raise RequestError(f"leaf {position} ({type(source).__name__}) cannot be loaded: {shapes}")
