"""A golden case: tensors and settings of the published code, and what was compared with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("MODNET_GOLDEN") or Path(__file__).parent / "golden")


class Case:
    """One case; ``expect`` compares an output, ``finish`` asserts that none was left out."""

    def __init__(self, name: str) -> None:
        self.document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        tensors = FOLDER / f"{name}.safetensors"
        self.tensors = load_file(tensors) if tensors.exists() else {}
        self.config: dict[str, Any] = self.document["config"]
        self.tolerance: float = self.document["tolerance"]
        self.waiting = {key for key in self.tensors if key.startswith("out.")}

    def given(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def expect(self, name: str, actual: Tensor, tolerance: float | None = None) -> None:
        expected = self.tensors[f"out.{name}"]
        limit = self.tolerance if tolerance is None else tolerance
        torch.testing.assert_close(
            actual.detach().reshape(expected.shape),
            expected,
            atol=limit,
            rtol=limit,
            msg=lambda text: f"{name}: {text}",
        )
        self.waiting.discard(f"out.{name}")

    def finish(self) -> None:
        assert not self.waiting, f"not compared: {sorted(self.waiting)}"
