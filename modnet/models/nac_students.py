"""How the modules of a circuit are taught one by one, and loaded into a whole circuit (m2mKD, arXiv 2402.16918)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modnet.chain import Chain, Module
from modnet.errors import RequestError
from modnet.layers.nac.circuit import PoolingHead, Propagator, ReadIn, ReadOut
from modnet.layers.nac.students import PropagatorStudent, ReadInStudent, ReadOutStudent
from modnet.surgery.stitching import is_stitch
from modnet.surgery.transplant import Family, Report

STANDS_FOR: Mapping[type[Module], type[Module]] = {
    ReadIn: ReadInStudent,
    Propagator: PropagatorStudent,
    ReadOut: ReadOutStudent,
}
FIXED = ("code", "state")  # what a student has in place of latents; it stays behind
GRID = "tokenizer.grid"
REFERENCE_SCALE = 1e-6
"""Where the published read-in student's feed-forward network starts, as its setting is lost on the way."""


def student(network: Chain, i: int, width: int) -> Chain:
    """What learns in the place of module ``i``; the tokenizer is the network's own, all else is new.

    Raises RequestError for a circuit whose propagators share weights, or that has no pooling of output modules.
    """
    return Chain([_student_of(leaf) for leaf in network[i].leaves])


def _student_of(leaf: Module) -> Module:
    given = leaf.arguments
    if isinstance(leaf, PoolingHead):
        return PoolingHead(**{**given, "slots": 1})
    if leaf.role == "head":
        raise RequestError("pooling: slot has no student to distil; give the circuit another pooling")
    if given.get("repeats", 1) > 1:
        raise RequestError("propagators that share their weights cannot be distilled apart; set share_weights: false")
    found = STANDS_FOR.get(type(leaf))
    if found is None:
        return leaf
    known = inspect.signature(found).parameters
    kept = {name: value for name, value in given.items() if name in known}
    if given.get("quirk_student_scale"):
        kept["scale"] = REFERENCE_SCALE
    return found(**kept)


@torch.no_grad()
def transplant(students: Sequence[Chain], network: Chain) -> Report:
    """Load the students' tokenizer, attention, feed-forward networks and head into the circuit.

    Signatures, codes, seeder and kernels are left as they are. So are the positional grid where the students saw
    images of another size, and the head with it, or where it tells other classes apart. Stitches and fixed codes are
    dropped. Raises RequestError for any other tensor that is missing or has another shape: nothing is loaded in part.
    """
    every = [leaf for chain in students for leaf in chain.leaves]
    taught = [leaf for leaf in every if not is_stitch(leaf)]
    if len(taught) != len(network.leaves):
        raise RequestError(f"{len(taught)} taught leaves do not fill a circuit of {len(network.leaves)}")
    report = Report(
        dropped=[f"{type(leaf).__name__}.{n}" for leaf in every if is_stitch(leaf) for n in leaf.state_dict()]
    )
    skipped = _of_other_images(taught, network)
    moved: dict[str, Tensor] = {}
    for position, (source, target) in enumerate(zip(taught, network.leaves, strict=True)):
        own = source.state_dict()
        left = {n for n in own if n in FIXED or (position, n) in skipped}
        report.dropped += [f"{type(source).__name__}.{n}" for n in own if n in left]
        moved |= _checked(position, {n: t for n, t in own.items() if n not in left}, target, skipped)
    state = network.state_dict()
    for name, tensor in moved.items():
        state[name].copy_(tensor)
    report.loaded, report.left = list(moved), sorted(state.keys() - moved.keys())
    return report


def _of_other_images(taught: Sequence[Module], network: Chain) -> set[tuple[int, str]]:
    """Position and name of tensors that belong to images or classes which the circuit does not see."""
    ends = [(0, taught[0], network.leaves[0]), (len(taught) - 1, taught[-1], network.leaves[-1])]
    (_, first, own_first), (last, head, own_head) = ends
    other_images = _shapes(first).get(GRID) != _shapes(own_first).get(GRID)
    grid = {(0, GRID)} if other_images else set()
    if other_images or _shapes(head) != _shapes(own_head):
        return grid | {(last, name) for name in (*head.state_dict(), *own_head.state_dict())}
    return grid


def _shapes(leaf: Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in leaf.state_dict().items()}


def _checked(
    position: int, given: Mapping[str, Tensor], target: Module, skipped: set[tuple[int, str]]
) -> dict[str, Tensor]:
    """The tensors under their names in the network; raises RequestError unless each has a place, and each place one."""
    own = {n: s for n, s in _shapes(target).items() if not n.startswith("kernel.") and (position, n) not in skipped}
    odd = [n for n in sorted(own.keys() | given.keys()) if n not in own or n not in given or given[n].shape != own[n]]
    if odd:
        shapes: Any = [
            f"{n} {tuple(given[n].shape) if n in given else 'missing'} for {own.get(n, 'none')}" for n in odd
        ]
        raise RequestError(f"leaf {position} ({type(target).__name__}) cannot be loaded: {', '.join(shapes)}")
    return {f"{position}.{name}": tensor for name, tensor in given.items()}


FAMILY = Family(student, transplant, whole=False)
