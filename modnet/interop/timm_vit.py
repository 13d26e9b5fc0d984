"""Flat state dicts of timm's Vision Transformers, read into and written from our own chains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from modnet.chain import Chain
from modnet.interop.files import read_state, write_state
from modnet.interop.keys import Loaded, load_published, published_state


def load_flat(
    chain: Chain,
    state: Mapping[str, Tensor],
    source: str = "the state dict",
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> Loaded:
    """Copy a flat timm state dict into a whole chain, whatever its cut.

    The patterns allow names to be absent or left over; all else raises RequestError naming it.
    """
    return load_published(chain, state, source, allow_missing=allow_missing, allow_unexpected=allow_unexpected)


def read_flat(chain: Chain, path: Path) -> Loaded:
    """Load a ``.safetensors`` or ``torch.save`` file of flat timm names; raises RequestError."""
    return load_flat(chain, read_state(path), str(path))


def write_flat(chain: Chain, path: Path) -> None:
    """Write a whole chain under flat timm names as safetensors, which timm can load."""
    write_state(published_state(chain), path)
