"""The kernel of a circuit: who hears whom follows from the distance of their signatures."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.randomness import Key

EvalKernel = Literal["mean", "sample", "threshold"]
Truncation = Literal["direct", "masked"]


def distances(receivers: Tensor, senders: Tensor) -> Tensor:
    """1 − cosine of every pair of signatures: (U, S) and (V, S) to (U, V), in [0, 2], float32 at least."""
    device = "cpu" if receivers.is_meta else receivers.device.type  # no autocast is known for shapes alone
    with torch.autocast(device, enabled=False):
        return 1 - F.normalize(receivers.float(), dim=-1) @ F.normalize(senders.float(), dim=-1).T


class Kernel(nn.Module):
    """log K = −d / ω for pairs of signatures no farther than ``truncation``, else −∞; ω is the bandwidth.

    In training a stochastic kernel draws a relaxed Bernoulli variable of probability K for every sample and link
    (Maddison et al. 2017), so that links learn to open and close; ``evaluation`` says what stands for it otherwise:
    ``mean`` K itself, ``sample`` a draw, ``threshold`` 1 where K is at least one half, else 0. Computed in float32
    whatever the precision around it. Source: NAC (arXiv 2210.08031), section on sparse communication.
    """

    def __init__(
        self,
        truncation: float | None = None,
        stochastic: bool = False,
        temperature: float = 0.5,
        bandwidth: float = 1.0,
        learnable: bool = True,
        evaluation: EvalKernel = "mean",
        implementation: Truncation = "direct",
    ) -> None:
        super().__init__()
        self.truncation, self.stochastic, self.temperature = truncation, stochastic, temperature
        self.evaluation, self.implementation = evaluation, implementation
        self.bandwidth: Tensor
        if learnable:
            self.bandwidth = nn.Parameter(torch.tensor(float(bandwidth)))
        else:
            self.register_buffer("bandwidth", torch.tensor(float(bandwidth)))

    def kept(self, distance: Tensor) -> Tensor | None:
        """Which pairs are close enough, bool (U, V); None if all are."""
        if self.truncation is None:
            return None
        return distance < self.truncation if self.implementation == "masked" else distance <= self.truncation

    def log(self, receivers: Tensor, senders: Tensor) -> Tensor:
        """Log K of every pair of signatures, (U, V), with −∞ where it is truncated."""
        distance = distances(receivers, senders)
        kept = self.kept(distance)
        log_kernel = -distance / self.bandwidth
        return log_kernel if kept is None else log_kernel.masked_fill(~kept, float("-inf"))

    def sampled(self, log_kernel: Tensor, uniform: Tensor) -> Tensor:
        """The log of a relaxed Bernoulli draw with probability K: (U, V) and uniform numbers (B, U, V) to (B, U, V).

        The clamp of K to [0, 1] only mends rounding, so its gradient is passed straight through.
        """
        info = torch.finfo(torch.float32)
        p = log_kernel.exp()
        p = p + (p.clamp(0, 1) - p).detach()
        logit = torch.logit(p.clamp(info.eps, 1 - info.eps)) + torch.logit(uniform.clamp(info.eps, 1 - info.eps))
        return torch.sigmoid(logit / self.temperature).clamp(info.tiny, 1 - info.eps).log()

    def forward(self, receivers: Tensor, senders: Tensor, ids: Tensor, key: Key | None) -> Tensor:
        """Log K for signatures (U, S) and (V, S): (U, V), or (B, U, V) where it was drawn for the samples ``ids``.

        ``key`` is that of this draw; None: nothing is drawn.
        """
        log_kernel = self.log(receivers, senders)
        if not self.stochastic:
            return log_kernel
        if key is not None and (self.training or self.evaluation == "sample"):
            uniform = key.uniform(ids, log_kernel.numel()).view(len(ids), *log_kernel.shape)
            return self.sampled(log_kernel, uniform)
        if not self.training and self.evaluation == "threshold":
            near = log_kernel.exp() >= 0.5
            return torch.zeros_like(log_kernel).masked_fill(~near, float("-inf"))
        return log_kernel


def normalised(log_kernel: Tensor) -> Tensor:
    """Log K with its rows shifted so that K sums to one over the senders; a row without senders stays all −∞."""
    silent = log_kernel.isneginf().all(-1, keepdim=True)
    total = log_kernel.masked_fill(silent, 0).logsumexp(-1, keepdim=True)
    return log_kernel - total
