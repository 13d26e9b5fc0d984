"""What figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from modnet.engine.muon import fastest_dtype

LIBRARIES = ("torchvision", "timm", "transformers")


def machine() -> dict[str, Any]:
    """Processor, threads, load, and versions of modnet and of what the baselines are written with."""
    from modnet import __version__

    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    here = {"cpu": cpu, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    here["bf16"] = bf16_missing() is None
    versions = {"modnet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**here, **versions, **{name: _version(name) for name in LIBRARIES}}


def bf16_missing() -> str | None:
    """Why nothing is measured in bf16 here; None where the processor multiplies it itself."""
    dtype, why = fastest_dtype(torch.device("cpu"))
    return None if dtype == torch.bfloat16 else why


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_lines() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
