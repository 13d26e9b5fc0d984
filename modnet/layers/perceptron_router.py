"""ModuleFormer's routers: a perceptron, or directions that tokens are compared with (arXiv 2306.04640)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.layers.initialise import initialise_linear
from modnet.layers.routers import Choice, SoftmaxTopKGate
from modnet.recipe.routers import CentroidTopK, PerceptronTopK


class PerceptronTopKGate(SoftmaxTopKGate):
    """Linear, exact GELU, Linear without bias, softmax over all experts, then the top K of these probabilities.

    The last ``silent`` rows count in the softmax but are never chosen: what is left of experts that were pruned.
    """

    params: PerceptronTopK

    def __init__(self, width: int, experts: int, top_k: int, params: PerceptronTopK) -> None:
        super().__init__(params.hidden, experts + params.silent, top_k, params)
        self.inner = nn.Linear(width, params.hidden)
        initialise_linear(self.inner)

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        return self.logits(F.gelu(self.logits(x, self.inner)), self.gate)

    def live(self, rows: Tensor) -> Tensor:
        """Those of (…, E + silent) that belong to experts: (…, E)."""
        return rows[..., : rows.shape[-1] - self.params.silent]

    def noise(self, x: Tensor, logits: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """As its base, for experts alone."""
        noisy, std = super().noise(x, self.live(logits), eps)
        return torch.cat([noisy, logits[..., noisy.shape[-1] :]], dim=-1), std

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        weights, indices = self.live(noisy.softmax(-1)).topk(self.top_k, dim=-1)
        return Choice(logits, noisy, indices, weights, std)

    def losses(self, choice: Choice) -> Iterator[tuple[float, Tensor]]:
        """As its base, of the experts alone."""
        yield from super().losses(replace(choice, logits=self.live(choice.logits), noisy=self.live(choice.noisy)))


class CentroidTopKGate(PerceptronTopKGate):
    """Cosine of a projected token and each expert's direction, times a learned temperature; then as its base."""

    params: CentroidTopK

    def __init__(self, width: int, experts: int, top_k: int, params: CentroidTopK) -> None:
        super().__init__(width, experts, top_k, params)
        self.inner = nn.Linear(width, params.hidden, bias=False)
        initialise_linear(self.inner)
        self.temperature = nn.Parameter(torch.zeros(1))  # its logarithm

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        inner = F.normalize(self.logits(x, self.inner), dim=-1)
        rows = F.normalize(self.gate.weight.to(inner.dtype), dim=-1)
        return inner @ rows.T * self.temperature.to(inner.dtype).exp()
