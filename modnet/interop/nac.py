"""Checkpoints of Neural Attentive Circuits (NAC, and m2mKD's students): the published names of every tensor.

A published file is a mapping with ``model``, a state dict. Codes and states of students were never saved there, so a
student keeps those that it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from modnet.chain import Chain
from modnet.interop.files import read_state, write_torch
from modnet.interop.keys import Loaded, State, load_named
from modnet.layers.nac.circuit import PoolingHead, Propagator
from modnet.layers.nac.students import Student

CIRCUIT = "latent_graphs.0."
FIXED = ("*.code", "*.state")  # ours alone: the published code drew them anew

# Our words for a layer's parts, and the published ones
_PARTS = (
    ("kernel.", "latent_attention.kernel."),
    ("receiver_norm", "receiver_layernorm"),
    ("sender_norm", "sender_layernorm"),
    ("query.", "query_compiler."),
    ("key.", "key_compiler."),
    ("value.", "value_compiler."),
    ("exit.", "exit_layer."),
)


def circuit_names(chain: Chain) -> dict[str, str]:
    """Our name of every tensor of a whole circuit → the published one."""
    last = len(chain.leaves) - 1
    prefixes = {"shared": CIRCUIT, "0": "input_", "1": f"{CIRCUIT}read_in.", str(last - 1): f"{CIRCUIT}read_out."}
    rounds = [i for i, leaf in enumerate(chain.leaves) if isinstance(leaf, Propagator)]
    prefixes |= {str(i): f"{CIRCUIT}propagators.{depth}." for depth, i in enumerate(rounds)}
    prefixes[str(last)] = "output_tokenizer."
    return {ours: _name(ours, prefixes) for ours in chain.state_dict()}
