"""Files of m2mKD (kamanphoebe/m2mKD): one teacher module a file, and distilled student modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.interop.deep_incubation import depth_of, stages_of
from modnet.interop.files import read_torch, write_torch
from modnet.interop.keys import Loaded, State, load_published, published_state, split_experts

STITCHES = ("*pre_stitch.*", "*post_stitch.*")


@dataclass(frozen=True)
class TeacherModule:
    """One module of a teacher: its place, its tensors (blocks from 0), the whole's depths."""

    model: str
    index: int
    depths: tuple[int, ...]
    state: State


def read_teacher_module(path: Path) -> TeacherModule:
    """A file that the published ``split_teacher.py`` wrote; raises RequestError naming what is missing."""
    content = read_torch(path)
    wanted = ("model_name", "block_index", "block_state_dict", "divided_depths")
    absent = [name for name in wanted if name not in content]
    if absent:
        raise RequestError(f"{path} is no m2mKD teacher module: it lacks {', '.join(absent)}")
    depths = tuple(int(d) for d in content["divided_depths"])
    index = range(len(depths))[int(content["block_index"])]
    state = dict(content["block_state_dict"])
    if depth_of(state) != depths[index]:
        raise RequestError(
            f"{path} says that module {index} has {depths[index]} blocks, but it holds {depth_of(state)}"
        )
    return TeacherModule(str(content["model_name"]), index, depths, state)


def write_teacher_module(chain: Chain, index: int, path: Path, model: str) -> None:
    """Write module ``index`` of a teacher as the published code's file."""
    content = {
        "model_name": model,
        "block_index": index,
        "block_state_dict": published_state(chain[index]),
        "divided_depths": list(chain.depths),
    }
    write_torch(content, path)


def load_teacher_module(module: Chain, file: TeacherModule) -> Loaded:
    """Copy a teacher module into one of the same depth; raises RequestError on any difference."""
    return load_published(module, file.state, f"module {file.index} of {file.model}")


def read_student_module(path: Path) -> State:
    """The tensors of one distilled student module, stitches included.

    Raises RequestError if the file's ``model_stages`` has another length than 1.
    """
    stages = stages_of(read_torch(path), str(path))
    if len(stages) != 1:
        raise RequestError(f"{path} holds {len(stages)} modules; a distilled student file holds 1")
    return stages[0]


def write_student_module(module: Chain, path: Path, *, split: bool = False) -> None:
    """Write one student module, stitches included, as the published code's file.

    ``split``: with a tensor for each expert, as older fastmoe has it.
    """
    state = published_state(module)
    state = split_experts(state) if split else state
    write_torch({"model_stages": [state]}, path)


def load_student_module(module: Chain, state: Mapping[str, Tensor], source: str) -> Loaded:
    """Copy a distilled module in; its stitches are left out where ``module`` has none.

    Unlike the published code, which loads whatever fits, any other missing or unexpected tensor raises RequestError,
    and so does a stitch that the module has and the file has not.
    """
    return load_published(module, state, source, allow_unexpected=STITCHES)
