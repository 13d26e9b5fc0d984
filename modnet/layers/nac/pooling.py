"""From output modules to logits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

PoolingKind = Literal["gumbel", "gumbel-hard", "vanilla"]


class OutputPooling(nn.Module):
    """A weighted mean of the output states, then a linear classifier: (B, U, width) to logits (B, classes).

    The weights are the softmax over modules of a learned confidence. ``gumbel`` adds Gumbel noise to it where noise is
    given (Jang et al. 2017); ``gumbel-hard`` also makes the weights one-hot, with the gradient of the soft ones.
    """

    def __init__(self, width: int, classes: int, kind: PoolingKind = "gumbel", temperature: float = 1.0) -> None:
        super().__init__()
        self.confidence, self.to_logits = nn.Linear(width, 1), nn.Linear(width, classes)
        self.kind, self.temperature = kind, temperature

    def weights(self, states: Tensor, noise: Tensor | None = None) -> Tensor:
        """The weight of every module, (B, U), from noise (B, U) if there is any."""
        confidence = self.confidence(states).squeeze(-1)
        if noise is not None and self.kind != "vanilla":
            confidence = confidence + noise
        soft: Tensor = (confidence / self.temperature).softmax(-1)
        if self.kind != "gumbel-hard":
            return soft
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return hard - soft.detach() + soft

    def forward(self, states: Tensor, noise: Tensor | None = None) -> Tensor:
        pooled = (self.weights(states, noise)[..., None] * states).sum(dim=1)
        logits: Tensor = self.to_logits(pooled)
        return logits
