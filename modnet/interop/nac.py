"""Checkpoints of Neural Attentive Circuits (NAC, and m2mKD's students of them): the published names of every tensor.

A published file is a mapping with ``model``, a state dict. Codes and states of students were never saved there, so a
student keeps those that it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from modnet.chain import Chain, Module
from modnet.interop.files import write_torch
from modnet.interop.keys import Loaded, State, load_named
from modnet.layers.nac.circuit import PoolingHead, Propagator
from modnet.layers.nac.students import Student

CIRCUIT = "latent_graphs.0."
FIXED = (".code", ".state")  # ours alone: the published code drew them anew

# Ours below a leaf, in order → published
_PARTS: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = (
    (r"\b(receiver|sender)_norm\b", r"\1_layernorm"),
    (r"\b(query|key|value)\.", r"\1_compiler."),
    (r"\bexit\.", "exit_layer."),
    (r"^ffn\.fc([12])\.", lambda m: f"ffn.ffn.{'0' if m[1] == '1' else '2'}."),
    (r"^ffn\.norm\b", "ffn.layernorm"),
    (r"^(ffn|attention)\.gamma$", r"\1.layer_scale.gamma"),
    (r"^(attention\.\w+|ffn\.ffn\.\d|fc)\.(weight|bias)$", lambda m: f"{m[1]}.{_native(m[1], m[2])}"),
    (r"\.gain$", ".scale_gain"),
)
_TOKENIZER: Sequence[tuple[str, str]] = (
    (r"^grid$", "positional_grid.grid"),
    (r"^downs\.", "backbone.downsample_layers."),
    (r"^stages\.", "backbone.stages."),
    (r"\.depthwise\.", ".dwconv."),
    (r"\.fc([12])\.", r".pwconv\1."),
)
_LATENTS: Sequence[tuple[str, str]] = (
    (r"^(\w+)\.(signatures|codes)$", r"\1_latents.\2_"),
    (r"^(\w+)\.states$", r"\1_latents.initial_states_"),
    (r"^seeder\.norm\.", "latent_seeder.layernorm."),
    (r"^seeder\.mean\.", "latent_seeder.code_to_state_mu."),
    (r"^seeder\.log_variance\.", "latent_seeder.code_to_state_logvar."),
)


def _native(part: str, name: str) -> str:
    """A modulated layer's own weight and bias are called native; a norm's are not."""
    return name if part.endswith("_layernorm") else f"native_{name}"


def _renamed(name: str, table: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _inner(rest: str, attention: str) -> str:
    """The published name below a leaf with attention and feed-forward network."""
    if rest.startswith("kernel."):
        return f"{attention}.{rest}"
    return re.sub(r"^attention\.", f"{attention}.", _renamed(rest, _PARTS))


def _pooling(rest: str) -> str:
    return rest.removeprefix("pooling.").replace("confidence.", "confidence_scorer.")


def circuit_names(chain: Chain) -> dict[str, str]:
    """The published name of every tensor of a whole circuit → ours; one that repeats its propagator has several."""
    names: dict[str, str] = {}
    for ours in chain.state_dict():
        position, _, rest = ours.partition(".")
        if position == "shared":
            names[CIRCUIT + _renamed(rest, _LATENTS)] = ours
            continue
        names |= dict.fromkeys(_of_leaf(int(position), chain.leaves, rest), ours)
    return names


def _of_leaf(position: int, leaves: Sequence[Module], rest: str) -> list[str]:
    leaf, last = leaves[position], len(leaves) - 1
    if position == 0:
        return [f"input_tokenizer.{_renamed(rest.removeprefix('tokenizer.'), _TOKENIZER)}"]
    if position == 1:
        return [f"{CIRCUIT}read_in.{_inner(rest, 'read_in_attention')}"]
    if isinstance(leaf, Propagator):
        return [f"{CIRCUIT}propagators.{depth}.{_inner(rest, 'latent_attention')}" for depth in leaf.rounds]
    if position == last - 1:
        return [f"{CIRCUIT}read_out.{_inner(rest, 'latent_attention')}"]
    if isinstance(leaf, PoolingHead):
        return [f"output_tokenizer.{_pooling(rest)}"]
    if rest.startswith("norm."):
        return [f"{CIRCUIT}read_out.head.0.module.{rest.removeprefix('norm.')}"]
    return [f"{CIRCUIT}read_out.head.1.{_renamed(rest, _PARTS).removeprefix('fc.')}"]


def student_names(chain: Chain) -> dict[str, str]:
    """The published name of every tensor of a student, stitches included → ours; its fixed code and state have none."""
    last, names = len(chain.leaves) - 1, {}
    reads = chain.leaves[0].role == "stem"
    for ours in chain.state_dict():
        if ours.endswith(FIXED):
            continue
        position, _, rest = ours.partition(".")
        leaf = chain.leaves[int(position)]
        if isinstance(leaf, Student):
            theirs = f"read_in.{_inner(rest, 'read_in_attention')}" if reads else _inner(rest, "latent_attention")
        elif leaf.role == "stem":
            theirs = f"tokenizer.{_renamed(rest.removeprefix('tokenizer.'), _TOKENIZER)}"
        elif isinstance(leaf, PoolingHead):
            theirs = f"tokenizer.{_pooling(rest)}"
        else:
            theirs = f"{'post' if int(position) == last else 'pre'}_stitch.{rest.removeprefix('fc.')}"
        names[theirs] = ours
    return names


def is_circuit(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the published names of a whole circuit."""
    return any(name.startswith(CIRCUIT) for name in state)


def is_student(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the published names of a circuit's student."""
    return any(name.startswith(("latent_attention.", "read_in.read_in_attention.")) for name in state)


def load_circuit(
    chain: Chain,
    state: Mapping[str, Tensor],
    source: str,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Loaded:
    """Copy a published circuit into ours; raises RequestError naming what is missing, unexpected or misshapen."""
    return load_named(chain, state, circuit_names(chain), source, allow_missing, allow_unexpected)


def load_student(chain: Chain, state: Mapping[str, Tensor], source: str) -> Loaded:
    """Copy a published student into ours, stitches included; its code and state stay as they are."""
    return load_named(chain, state, student_names(chain), source)


def published_circuit(chain: Chain) -> State:
    """A whole circuit's tensors under the published names."""
    own = chain.state_dict()
    return {theirs: own[ours] for theirs, ours in circuit_names(chain).items()}


def published_student(chain: Chain) -> State:
    """A student's tensors under the published names, without its code and state."""
    own = chain.state_dict()
    return {theirs: own[ours] for theirs, ours in student_names(chain).items()}


def write_circuit(chain: Chain, path: Path) -> None:
    """Write a whole circuit as the published file."""
    write_torch({"model": published_circuit(chain)}, path)


def write_student(chain: Chain, path: Path) -> None:
    """Write a student as the published file."""
    write_torch({"model": published_student(chain)}, path)
