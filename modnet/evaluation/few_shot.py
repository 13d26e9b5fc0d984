"""A new classifier on the frozen features of a network, for many episodes at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.evaluation.accuracy import Images, Normaliser, evaluating, logits_of
from modnet.randomness import Key

DECAY = 0.05  # of the weights, as AdamW's default in recipes; biases are left out there as well


def classifier(chain: Chain) -> nn.Linear:
    """The one linear layer in the last leaf that gives the logits; raises RequestError if there is not just one."""
    classes = chain.gives["classes"] if chain.gives is not None and chain.gives.kind == "logits" else None
    last = chain.leaves[-1]
    found = [m for m in last.modules() if isinstance(m, nn.Linear) and classes in (None, m.out_features)]
    if len(found) != 1:
        raise RequestError(
            f"few_shot replaces the linear classifier at a network's end, but {type(last).__name__} has {len(found)}"
        )
    return found[0]


def features(chain: Chain, images: Images, dataset: Normaliser, batch: int = 512) -> Tensor:
    """What enters the classifier for every image in order, float32 (N, D), on the chain's device.

    Raises RequestError where that is more than one vector an image.
    """
    kept: list[Tensor] = []
    hook = classifier(chain).register_forward_pre_hook(lambda layer, given: kept.append(given[0].float()))
    try:
        with evaluating(chain):
            for _ in logits_of(chain, images, dataset, batch):
                pass
    finally:
        hook.remove()
    if any(part.ndim != 2 for part in kept):
        raise RequestError("few_shot: this network classifies several vectors an image; give tune: all")
    return torch.cat(kept).clone()


def tuned_heads(inputs: Tensor, labels: Tensor, ways: int, epochs: int, lr: float, key: Key) -> tuple[Tensor, Tensor]:
    """Weights (E, ways, D) and biases (E, 1, ways) that AdamW finds for E episodes, all images in one step.

    ``inputs``: float32 (E, N, D); ``labels``: int64 (E, N). The rate falls from ``lr`` by a cosine. Episodes do not
    see each other: their losses are added, and AdamW acts on each number by itself.
    """
    count, _, width = inputs.shape
    weight = torch.empty(count, ways, width)
    nn.init.trunc_normal_(weight, std=0.02, generator=key.generator())
    weight = weight.to(inputs.device).requires_grad_()
    bias = torch.zeros(count, 1, ways, device=inputs.device, requires_grad=True)
    groups = [{"params": [weight], "weight_decay": DECAY}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        logits = torch.baddbmm(bias, inputs, weight.transpose(1, 2))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def head_accuracies(heads: tuple[Tensor, Tensor], inputs: Tensor, labels: Tensor) -> list[float]:
    """Top-1 in percent of each episode's head on its own images: inputs (E, N, D), labels (E, N)."""
    weight, bias = heads
    hits = torch.baddbmm(bias, inputs, weight.transpose(1, 2)).argmax(2) == labels
    return [100 * float(value) for value in hits.double().mean(1)]
