"""The routers of EMoE (arXiv 2310.10908): by the mean of an expert's keys, and by a learned cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.layers import balance
from modnet.layers.exchange import gathered
from modnet.layers.initialise import initialise_linear
from modnet.layers.routers import Choice, Gate, SoftmaxTopKGate, normalised
from modnet.randomness import Key
from modnet.recipe.routers import AveragedKeys, Cosine, NormedKeys

HOTTEST = math.log(100)  # the largest logarithm of the cosine's scale


class EMoEGate(SoftmaxTopKGate):
    """Losses as EMoE's copy of tutel has them: unbiased variance, and its load loss by ``quirk_load``."""

    params: AveragedKeys | NormedKeys | Cosine  # type: ignore[assignment]

    def importance(self, choice: Choice) -> Tensor:
        """Of the probabilities without noise."""
        return balance.importance(choice.probs, unbiased=True, across=self.across)

    def load(self, choice: Choice) -> Tensor | None:
        """V-MoE's with unbiased variance; None where there is no noise."""
        if isinstance(choice.std, Tensor) or not choice.std:
            return None
        clean = choice.probs if self.params.quirk_load else choice.logits
        return balance.load(clean, choice.noisy, choice.std, self.top_k, True, self.across)


class ByKeysGate(EMoEGate):
    """Scores by the experts' own keys; the best K, each with weight 1."""

    by_keys = True
    params: AveragedKeys | NormedKeys

    def __init__(self, width: int, experts: int, top_k: int, params: AveragedKeys | NormedKeys) -> None:
        nn.Module.__init__(self)
        self.params, self.top_k = params, top_k

    def tables(self) -> Iterator[tuple[nn.Module, str]]:
        """None."""
        return iter(())

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        indices = noisy.topk(self.top_k, dim=-1).indices
        return Choice(logits, noisy, indices, torch.ones_like(logits[..., : self.top_k]), std)

    def tie(self, run: int) -> None:
        """Experts whose keys are equal score alike by themselves; others cannot be made to."""
        raise NotImplementedError(f"{self.params.name} scores by the experts' own keys")


class AveragedKeysGate(ByKeysGate):
    """avg-k: the mean over an expert's hidden units of token · key, without bias.

    It has no parameters: the rows follow the experts' own keys, and no gradient goes to these through the scores. With
    ``momentum`` they follow slowly, and are a buffer.
    """

    params: AveragedKeys
    rows: Tensor  # there with momentum alone

    def __init__(self, width: int, experts: int, top_k: int, params: AveragedKeys) -> None:
        super().__init__(width, experts, top_k, params)
        self.step: Key | None = None
        if params.momentum:
            self.register_buffer("rows", torch.zeros(experts, width))

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """By the keys' means as they are after the last step; ``rows`` are those of the last step in training."""
        assert keys is not None
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows = gathered(keys.detach().to(dtype).mean(1))
        if self.params.momentum:
            rows = self.rows if self.training else self.followed(rows)
        return F.linear(x.to(dtype), rows.to(dtype))

    def followed(self, means: Tensor) -> Tensor:
        """The rows (E, D), one step nearer to the means."""
        out: Tensor = self.rows.lerp(means.to(self.rows), 1 - self.params.momentum)
        return out

    @torch.no_grad()
    def follow(self, keys: Tensor, step: Key | None) -> None:
        """Once a step, which has one key for all micro-batches."""
        if self.params.momentum and self.training and (step is None or step != self.step):
            self.step = step
            self.rows.copy_(self.followed(gathered(keys.mean(1))))

    @torch.no_grad()
    def settle(self, keys: Tensor) -> None:
        if self.params.momentum:
            self.rows.copy_(gathered(keys.mean(1)))


class NormedKeysGate(ByKeysGate):
    """The length of the vector of token · key over an expert's hidden units, without bias.

    Of heads of attention the keys are rows of the query projection. No gradient goes to these through the scores.
    """

    params: NormedKeys

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        assert keys is not None
        dtype = torch.promote_types(x.dtype, torch.float32)
        every = gathered(keys.detach()).to(dtype)
        products = F.linear(x.to(dtype), every.flatten(0, 1))
        lengths: Tensor = products.unflatten(1, every.shape[:2]).norm(dim=-1)
        return lengths


class CosineGate(EMoEGate):
    """Cosine of the projected token and the expert's vector, times exp(temperature), at most 100."""

    params: Cosine

    def __init__(self, width: int, experts: int, top_k: int, params: Cosine) -> None:
        nn.Module.__init__(self)
        self.params, self.top_k = params, top_k
        self.project = nn.Linear(width, params.hidden, bias=params.bias)
        initialise_linear(self.project)
        self.vectors = nn.Parameter(torch.randn(experts, params.hidden) * 0.01)
        self.temperature = nn.Parameter(torch.tensor([math.log(2)]))

    def tables(self) -> Iterator[tuple[nn.Module, str]]:
        """The experts' vectors."""
        yield self, "vectors"

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        projected = F.normalize(Gate.logits(x, self.project), dim=-1)
        vectors = F.normalize(self.vectors.to(projected.dtype), dim=-1)
        return F.linear(projected, vectors) * self.temperature.clamp(max=HOTTEST).exp()

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        weights, indices = noisy.softmax(-1).topk(self.top_k, dim=-1)
        return Choice(logits, noisy, indices, normalised(weights) if self.top_k > 1 else weights, std)

    @torch.no_grad()
    def tie(self, run: int) -> None:
        self.vectors.copy_(self.vectors[::run].repeat_interleave(run, 0))
