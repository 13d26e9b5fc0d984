"""How fast a machine trains, as described or as measured here: for estimates of time, never for results."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.evaluation.cost import training_flops
from modnet.layers.block import Block
from modnet.randomness import Key
from modnet.registry import nearest

# Peak FLOP/s of the data sheets, dense: of float32 units, and of 16-bit matrix units
PEAKS = {"v100": (15.7e12, 125e12), "a100": (19.5e12, 312e12), "h100": (67e12, 989e12), "h200": (67e12, 989e12)}
REACHED = 0.4
"""The share of the peak that training is taken to reach."""
SUFFIXES = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15}
TOKENS, BATCH, HEAD, SECONDS = 197, 2, 64, 1.0


@dataclass(frozen=True)
class Speed:
    """FLOP/s sustained while training in float32 and in bfloat16, and where the figures are from, in words."""

    fp32: float
    bf16: float
    said: str

    def seconds(self, flops: float, dtype: str) -> float:
        """How long so many FLOPs take."""
        return flops / (self.bf16 if dtype == "bf16" else self.fp32)


def described(text: str) -> Speed:
    """The speed of ``h100``, ``a100x8`` or ``20T`` (FLOP/s sustained, of any device); raises RequestError."""
    if number := re.fullmatch(r"(\d+(?:\.\d+)?)([GTP]?)", text):
        sustained = float(number[1]) * SUFFIXES[number[2]]
        if sustained > 0:
            return Speed(sustained, sustained, f"{text}FLOP/s sustained, as stated")
    device = re.fullmatch(r"([a-z]+\d+)(?:x(\d+))?", text.lower())
    if device is None or device[1] not in PEAKS or device[2] == "0":
        near = nearest(text.lower().partition("x")[0], list(PEAKS), most=1)
        hint = f"did you mean {near[0]}?" if near else f"known devices: {', '.join(PEAKS)}"
        raise RequestError(
            f"--hardware {text!r}: name a device (h100, a100x8), a sustained speed (20T for 20 TFLOP/s), or `here`; "
            f"{hint}"
        )
    count = int(device[2] or 1)
    single, half = (REACHED * count * peak for peak in PEAKS[device[1]])
    return Speed(single, half, f"{text}, at {REACHED:.0%} of its data sheet's peak")


def measured(width: int, device: torch.device) -> Speed:
    """What this machine sustains, forward and backward, in a Transformer block of a width, 197 tokens an image."""
    width = -(-width // HEAD) * HEAD
    side = (1, TOKENS)
    with Key.of(0, "speed").forked(), torch.device(device):
        chain = Chain([Block(width, width // HEAD, prefix=0, grid=side)])
        x = torch.randn(BATCH, TOKENS, width).requires_grad_(True)
    work = BATCH * training_flops(chain, Port.of("tokens", width=width, prefix=0, grid=side), input_grad=True)
    fp32, bf16 = (work * _rate(chain, x, half) for half in (False, True))
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return Speed(fp32, bf16, f"measured here ({device}{threads}) in Transformer blocks {width} wide")


def _rate(chain: Chain, x: Tensor, half: bool) -> float:
    """Passes forward and backward a second."""
    passes, began = -1, 0.0  # the first one warms up
    while passes < 1 or time.perf_counter() - began < SECONDS:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            chain(x).sum().backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        passes += 1
        began = began or time.perf_counter()
    return passes / (time.perf_counter() - began)
