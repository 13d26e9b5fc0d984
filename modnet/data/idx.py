"""Reader of the idx format that MNIST and Fashion-MNIST are published in (unsigned bytes only)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modnet.errors import RunFailed

_UNSIGNED_BYTE = 8


def unpacked(path: Path, remedy: str = "") -> bytes:
    """The file's bytes, gunzipped if its name ends in ``.gz``.

    Raises RunFailed, with what the user can do, if it cannot be read or is corrupt.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RunFailed(f"{path} is corrupt ({error}). {remedy}".rstrip()) from error
    except OSError as error:
        raise RunFailed(f"cannot read {path}: {error.strerror or error}.") from error


def parse(raw: bytes, where: str) -> Tensor:
    """The uint8 tensor that idx bytes hold; raises RunFailed, naming ``where``, unless header and length agree."""
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTE or not 1 <= raw[3] <= 4:
        raise RunFailed(f"{where} is corrupt: it does not begin as an idx file of unsigned bytes does.")
    axes, start = raw[3], 4 + 4 * raw[3]
    if len(raw) < start:
        raise RunFailed(f"{where} is corrupt: its idx header ends early.")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if math.prod(shape) != len(raw) - start:
        raise RunFailed(
            f"{where} is corrupt: its header says {' x '.join(map(str, shape))} bytes, but {len(raw) - start} follow."
        )
    values: npt.NDArray[np.uint8] = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())
