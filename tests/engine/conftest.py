"""What tests of the engine share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def exact_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon in float32: in bfloat16 the last bits of a gradient would show."""
    monkeypatch.setattr("modnet.engine.choices.fastest_dtype", lambda device: (torch.float32, "a test"))
