"""Routers: which experts a token goes to, and with what weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.layers import balance
from modnet.layers.initialise import initialise_linear
from modnet.randomness import Key
from modnet.recipe.routers import (
    NO_GRADIENT,
    ExpertChoice,
    NoisyTopK,
    RenormalisedTopK,
    RouterParams,
    SampledTopK,
    SoftmaxTopK,
    TopKSoftmax,
)
from modnet.registry import ROUTERS


@dataclass(frozen=True)
class Choice:
    """What a router says of T tokens: logits without and with noise (T, E), experts and weights (T, K).

    ``std``: the standard deviation of the noise, (T, E) or a number; 0 without noise.
    """

    logits: Tensor
    noisy: Tensor
    indices: Tensor
    weights: Tensor
    std: Tensor | float = 0.0

    @property
    def probs(self) -> Tensor:
        """Softmax of the logits without noise."""
        return self.logits.softmax(-1)


@torch.no_grad()
def load_stats(choice: Choice, experts: int) -> dict[str, Tensor]:
    """The share of pairs of each expert, (E,), and the mean entropy of a token's probabilities (nats)."""
    everyone = torch.arange(experts, device=choice.indices.device)
    share = (choice.indices[..., None] == everyone).float().mean((0, 1))
    return {"load": share, "entropy": balance.mean_entropy(choice.probs)}


class Gate(nn.Module):
    """A linear router, computed in float32 or better; subclasses choose. Initialised as all linear layers here.

    ``noisy``: whether it wants noise while training. ``by_keys``: whether it scores by the experts' first layers.
    """

    noisy: ClassVar[bool] = False
    by_keys: ClassVar[bool] = False
    params: RouterParams

    def __init__(self, width: int, experts: int, top_k: int, params: RouterParams) -> None:
        super().__init__()
        self.params, self.top_k = params, top_k
        self.gate = nn.Linear(width, experts, bias=params.bias)
        initialise_linear(self.gate)

    @property
    def across(self) -> balance.Across:
        """Over whose tokens the statistics of losses go."""
        return balance.everywhere if self.params.balance_scope == "global" else balance.here

    def forward(self, x: Tensor, eps: Tensor | None = None, keys: Tensor | None = None) -> Choice:
        """Tokens (T, D) to a choice; ``eps`` (T, E): standard normal noise, None for none; ``keys`` (E, H, D)."""
        logits = self.score(x, keys)
        return self.choose(logits, *self.noise(x, logits, eps))

    def score(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Logits (T, E) without noise."""
        return self.logits(x, self.gate)

    def tables(self) -> Iterator[tuple[nn.Module, str]]:
        """The parameters that have a row for each expert: their module, and their name there."""
        yield from _rows(self.gate)

    @torch.no_grad()
    def tie(self, run: int) -> None:
        """Give every ``run`` experts in a row the scores of the first of them."""
        for p in (self.gate.weight, self.gate.bias):
            if p is not None:
                p.copy_(p[::run].repeat_interleave(run, 0))

    def follow(self, keys: Tensor, step: Key | None) -> None:
        """In training, before tokens of a step are scored: take up what the experts' keys (E, H, D) have become."""

    def settle(self, keys: Tensor) -> None:
        """Begin anew with these keys (E, H, D): the experts were made, or their number changed."""

    @staticmethod
    def logits(x: Tensor, layer: nn.Linear) -> Tensor:
        """A linear layer in at least float32, whatever the weights' type: rounding must not choose experts."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias: Tensor | None = getattr(layer, "bias", None)
        return F.linear(x.to(dtype), layer.weight.to(dtype), None if bias is None else bias.to(dtype))

    def noise(self, x: Tensor, logits: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Logits with noise, and the noise's standard deviation; here there is none."""
        return logits, 0.0

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        """Experts and weights."""
        raise NotImplementedError

    def losses(self, choice: Choice) -> Iterator[tuple[float, Tensor]]:
        """Weight and value, one number a group, of every loss whose weight is not 0; tensors are (groups, T, …)."""
        params, probs = self.params, choice.probs
        if params.importance:
            yield params.importance, self.importance(choice)
        spread = self.load(choice) if params.load else None
        if spread is not None:
            yield params.load, spread
        if params.gshard:
            first = choice.noisy.argmax(-1, keepdim=True)
            yield params.gshard, balance.switch(choice.noisy.softmax(-1), first, self.across)
        if params.switch:
            yield params.switch, balance.switch(probs, choice.indices, self.across)
        if params.z:
            yield params.z, balance.z_loss(choice.logits)
        if params.mutual_information:
            yield params.mutual_information, balance.mutual_information(probs, self.across)
        if params.concentration:
            yield params.concentration, balance.concentration(probs, self.across)

    def importance(self, choice: Choice) -> Tensor:
        """V-MoE's: of the probabilities without noise."""
        return balance.importance(choice.probs, across=self.across)

    def load(self, choice: Choice) -> Tensor | None:
        """V-MoE's; None where there is no noise."""
        if isinstance(choice.std, Tensor) or not choice.std:
            return None
        return balance.load(choice.logits, choice.noisy, choice.std, self.top_k, across=self.across)

    def loss(self, choice: Choice, group: int | None = None) -> Tensor | None:
        """The sum of all losses, averaged over groups of so many tokens; None where every weight is 0.

        Tokens that do not divide into groups are one group, and so are all where balance is global.
        """
        tokens = len(choice.logits)
        divides = group and tokens % group == 0 and self.params.balance_scope == "local"
        size = group if group and divides else tokens
        parts = {name: getattr(choice, name) for name in ("logits", "noisy", "indices", "weights", "std")}
        grouped = {k: v.unflatten(0, (-1, size)) for k, v in parts.items() if isinstance(v, Tensor)}
        found = [weight * value.mean() for weight, value in self.losses(replace(choice, **grouped))]
        return torch.stack(found).sum() if found else None


def _rows(layer: nn.Linear) -> Iterator[tuple[nn.Module, str]]:
    yield layer, "weight"
    if getattr(layer, "bias", None) is not None:
        yield layer, "bias"


def gate_of(
    router: Mapping[str, Any], width: int, experts: int, top_k: int, asked: str = "top_k"
) -> tuple[RouterParams, Gate]:
    """A router from its parameters as plain values, and these.

    Raises RequestError for more choices than experts, which the argument ``asked`` asks for, or a router that could
    not learn.
    """
    params = ROUTERS.read(dict(router))
    if top_k > experts:
        raise RequestError(f"{asked} {top_k} asks for more experts than there are ({experts})")
    if not params.learns(top_k):
        raise RequestError(NO_GRADIENT.format(name=params.name))
    return params, ROUTERS.get(params.name).resolve()(width, experts, top_k, params)


def drawn(gate: Gate, x: Tensor, experts: int, ctx: Pass, purpose: str = "router") -> Tensor | None:
    """Standard normal noise (B·N, E) for tokens (B, N, width), drawn per sample; None where none is wanted."""
    if not (gate.training and ctx.stochastic and gate.noisy):
        return None
    ids = torch.arange(len(x), device=x.device) if ctx.ids is None else ctx.ids
    return ctx.rng(purpose).normal(ids, x.shape[1] * experts).view(-1, experts)


class SoftmaxTopKGate(Gate):
    """V-MoE: softmax over all experts, then the top K; weights are these probabilities (arXiv 2106.05974)."""

    noisy = True
    params: SoftmaxTopK

    def noise(self, x: Tensor, logits: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Standard deviation ``noise / E``."""
        std = self.params.noise / logits.shape[-1]
        return (logits, 0.0) if eps is None or not std else (logits + eps * std, std)

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        weights, indices = noisy.softmax(-1).topk(self.top_k, dim=-1)
        return Choice(logits, noisy, indices, weights, std)


class RenormalisedTopKGate(SoftmaxTopKGate):
    """As V-MoE's, the K weights divided by their sum, times ``scale``."""

    params: RenormalisedTopK

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        choice = super().choose(logits, noisy, std)
        return replace(choice, weights=scaled(normalised(choice.weights), self.params.scale))


def normalised(weights: Tensor) -> Tensor:
    """Weights (T, K) divided by their sum."""
    return weights / weights.sum(-1, keepdim=True)


def scaled(weights: Tensor, scale: float) -> Tensor:
    """Weights times a factor that is 1 as a rule."""
    return weights if scale == 1 else weights * scale


class SampledTopKGate(SoftmaxTopKGate):
    """While training, the last of the K experts are drawn by their probabilities, without replacement (ModuleFormer).

    Adding Gumbel noise to log-probabilities and taking the largest draws without replacement.
    """

    noisy = True
    params: SampledTopK

    def noise(self, x: Tensor, logits: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """No noise on logits: ``eps`` becomes the draw."""
        return logits if eps is None else self.drawn(logits, eps), 0.0

    def drawn(self, logits: Tensor, eps: Tensor) -> Tensor:
        """Logits (T, E) in whose order the best K - j stand first, then j that were drawn, then the others."""
        sampled = min(self.params.sampled, self.top_k)
        probs = logits.softmax(-1)
        best = probs.topk(self.top_k - sampled, dim=-1).indices
        uniform = torch.special.ndtr(eps).clamp(1e-7, 1 - 1e-7)
        drawing = ((probs + 1e-6).log() - (-uniform.log()).log()).scatter(-1, best, math.inf)
        chosen = drawing.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(logits).scatter(-1, chosen, 1.0)

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        indices = noisy.topk(self.top_k, dim=-1).indices
        return Choice(logits, logits, indices, logits.softmax(-1).gather(-1, indices), std)


class TopKSoftmaxGate(Gate):
    """fastmoe's naive gate: the top K logits, softmax over these, times ``scale``."""

    params: TopKSoftmax | NoisyTopK

    def choose(self, logits: Tensor, noisy: Tensor, std: Tensor | float) -> Choice:
        chosen, indices = noisy.topk(self.top_k, dim=-1)
        return Choice(logits, noisy, indices, scaled(chosen.softmax(-1), getattr(self.params, "scale", 1.0)), std)


class NoisyTopKGate(TopKSoftmaxGate):
    """Noise whose size is learned for each token and expert, ``softplus(x W) + 0.01`` (Shazeer et al. 2017)."""

    noisy = True
    params: NoisyTopK

    def __init__(self, width: int, experts: int, top_k: int, params: NoisyTopK) -> None:
        super().__init__(width, experts, top_k, params)
        self.spread = nn.Linear(width, experts, bias=False)
        nn.init.zeros_(self.spread.weight)

    def tables(self) -> Iterator[tuple[nn.Module, str]]:
        """As its base, and the noise's."""
        yield from super().tables()
        yield from _rows(self.spread)

    def noise(self, x: Tensor, logits: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """A learned standard deviation for each token and expert."""
        if eps is None:
            return logits, 0.0
        std = F.softplus(self.logits(x, self.spread)) + 0.01
        return logits + eps * std, std

    def importance(self, choice: Choice) -> Tensor:
        """Of the weights that were given."""
        given = torch.zeros_like(choice.logits).scatter(-1, choice.indices, choice.weights)
        return balance.importance(given, unbiased=True, across=self.across)

    def load(self, choice: Choice) -> Tensor | None:
        """Shazeer's; None where there is no noise."""
        if not isinstance(choice.std, Tensor):
            return None
        return balance.shazeer_load(choice.logits, choice.noisy, choice.std, self.top_k, self.across)


class ExpertChoiceGate(SoftmaxTopKGate):
    """Softmax over experts; each expert then takes its best tokens (Zhou et al. 2022); ``indices`` say first choices.

    A token's experts depend on the other tokens of the batch, so it must not stand in an autoregressive model.
    """

    params: ExpertChoice  # type: ignore[assignment]

    def taken(self, choice: Choice, capacity: int) -> tuple[Tensor, Tensor]:
        """Tokens and weights (E, C), for each expert by descending weight."""
        weights, tokens = choice.noisy.softmax(-1).T.topk(min(capacity, len(choice.noisy)), dim=-1)
        return tokens, weights
