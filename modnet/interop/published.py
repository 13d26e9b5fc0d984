"""Checkpoints in any layout that is known: what a file holds, and reading it into a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.interop import nac
from modnet.interop.deep_incubation import flattened, stages_of, stages_of_model
from modnet.interop.files import read_state, read_torch, tensors_of
from modnet.interop.keys import Loaded, State, load_named, load_published
from modnet.surgery.adapting import resized_positions

Layout = Literal["modnet", "deep-incubation", "m2mkd-block", "m2mkd-student", "nac", "nac-student", "timm"]
MODULES: tuple[Layout, ...] = ("m2mkd-block", "m2mkd-student", "nac-student")
POSITIONS = "pos_embed"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: flat tensors in a layout; ``stages`` of Deep Incubation's, ``place`` of a teacher's block."""

    source: str
    layout: Layout
    state: State
    stages: tuple[State, ...] = ()
    place: int | None = None

    @property
    def is_module(self) -> bool:
        """Whether it is one module of a network."""
        return self.layout in MODULES


def read(path: Path) -> Checkpoint:
    """The content of a checkpoint file; nothing in it is run.

    Raises RequestError if it cannot be read, or holds nothing that is known.
    """
    source = str(path)
    if path.suffix == ".safetensors":
        state = read_state(path)
        return Checkpoint(source, _flat_layout(state), state)
    content = read_torch(path)
    if "block_state_dict" in content:
        count = len(content.get("divided_depths", ())) or 1
        place = range(count)[int(content.get("block_index", 0))]
        return Checkpoint(source, "m2mkd-block", dict(content["block_state_dict"]), place=place)
    model = content.get("model")
    if content.get("model_stages") or (isinstance(model, dict) and stages_of_model(model)):
        stages = stages_of(content, source)
        flat = flattened(stages)
        alone = len(stages) == 1 and not {"cls_token", "head.weight"} <= flat.keys()
        return Checkpoint(source, "m2mkd-student" if alone else "deep-incubation", flat, tuple(stages))
    state = tensors_of(content, path)
    return Checkpoint(source, _flat_layout(state), state)


def _flat_layout(state: State) -> Layout:
    if state and all(name.partition(".")[0] in ("shared", *map(str, range(len(state)))) for name in state):
        return "modnet"
    if nac.is_circuit(state):
        return "nac"
    return "nac-student" if nac.is_student(state) else "timm"


def load(chain: Chain, path: Path, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()) -> Loaded:
    """Read a file into a whole network; see :func:`load_checkpoint`."""
    return load_checkpoint(chain, read(path), allow_missing, allow_unexpected)


def load_checkpoint(
    chain: Chain, found: Checkpoint, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()
) -> Loaded:
    """Copy a whole network's checkpoint into a chain, whatever its cut.

    A position table of another grid is resized bicubically, class token aside. The patterns allow names to be missing
    or left over; all else raises RequestError naming it, and nothing is loaded in part.
    """
    if found.is_module:
        raise RequestError(
            f"{found.source} holds one module ({found.layout}), not a network; give the files of all modules to "
            "`modnet import`, which joins them"
        )
    if found.layout == "nac":
        return nac.load_circuit(chain, found.state, found.source, allow_missing, allow_unexpected)
    if found.layout == "modnet":
        own = {name: name for name in chain.state_dict()}
        return load_named(chain, found.state, own, found.source, allow_missing, allow_unexpected)
    state, resized = fitted_positions(chain, found.state)
    report = load_published(chain, state, found.source, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    return replace(report, resized=resized)


def fitted_positions(chain: Chain, state: State) -> tuple[State, tuple[str, ...]]:
    """The tensors with a position table that fits the chain's token grid, and what was changed, in words."""
    table, gives = state.get(POSITIONS), chain.leaves[0].gives
    grid = gives["grid"] if gives is not None and gives.kind == "tokens" else None
    if table is None or grid is None:
        return state, ()
    prefix = gives["prefix"] if gives is not None else 0
    side = round((table.shape[1] - prefix) ** 0.5)
    if side * side + prefix != table.shape[1] or (side, side) == tuple(grid):
        return state, ()
    made: Tensor = resized_positions(table, (side, side), tuple(grid))
    said = f"{POSITIONS} from {side} x {side} to {grid[0]} x {grid[1]} tokens"
    return {**state, POSITIONS: made}, (said,)
