"""Reading and writing checkpoint files of others; nothing received is ever unpickled as code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modnet.errors import RequestError
from modnet.store import atomic_file, save_tensors


def read_torch(path: Path) -> dict[str, Any]:
    """A ``torch.save`` file that holds a mapping of tensors and plain values, on the CPU.

    Raises RequestError if it is missing, damaged, or holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RequestError(f"there is no checkpoint {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        raise RequestError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}); files that hold code are "
            "not opened"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds a {type(content).__name__}, not a checkpoint's mapping")
    return content


def write_torch(content: Mapping[str, Any], path: Path) -> None:
    """Write a mapping of tensors and plain values, whole or not at all; raises RunFailed on a full disk."""
    with atomic_file(path) as temporary:
        torch.save(dict(content), temporary)


def read_state(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a ``.safetensors`` file, or from a ``torch.save`` file of one.

    A mapping under ``model`` or ``state_dict`` is taken out. Raises RequestError as above.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except FileNotFoundError as error:
            raise RequestError(f"there is no checkpoint {path}") from error
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors_of(read_torch(path), path)


def tensors_of(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The flat state dict of a file's content, taken out of ``model`` or ``state_dict``; raises RequestError."""
    for name in ("model", "state_dict"):
        if isinstance(content.get(name), dict):
            content = content[name]
    odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise RequestError(f"{path} is no flat state dict: {', '.join(map(str, odd))} are no tensors")
    return content


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a flat state dict as safetensors, whole or not at all; raises RunFailed on a full disk."""
    with atomic_file(path) as temporary:
        save_tensors(temporary, state)
