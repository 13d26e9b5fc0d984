"""The training step and checkpoints against loops that do no more than they must.

The bare loop is what torch's documentation of its optimizers shows (zero_grad, loss, backward, step), with fused
AdamW, on tensors that lie in memory; the network is timm's. Checkpoints are measured against the trainer itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from modnet.bench.networks import BATCH, CLASSES, network, random_data, run_job
from modnet.bench.pairs import Comparison, Finding, compare, turns, within
from modnet.chain import Chain
from modnet.data import Dataset
from modnet.data.loaders import TrainBatches
from modnet.engine.batch import Batches
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import Train
from modnet.recipe.training import AdamW, Crop, Flip, Schedule

STEPS, CHECKPOINT_STEPS = 429, 100  # an epoch of Fashion-MNIST without val; two checkpoints
DEPTHS = (1, 1, 1, 1)


def trainer(batches: Batches, **settings: object) -> Chain:
    """One epoch by the trainer, one validation's bookkeeping, metrics log and checkpoint included; the network."""
    values = {"data": "random", "model": "vit", "optimizer": AdamW(), "schedule": Schedule(warmup=0), **settings}
    chain = network(48, DEPTHS, stem="patch")
    run_job(WholeNetwork(chain, 0.0), {TRACK: chain}, batches, Train.model_validate(values))
    return chain


def timm_network() -> nn.Module:
    """Timm's VisionTransformer of the same size; our own network where timm is not installed."""
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        return network(48, DEPTHS, stem="patch")
    sizes: dict[str, Any] = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": CLASSES}
    model: nn.Module = VisionTransformer(**sizes, embed_dim=48, depth=sum(DEPTHS), num_heads=3)
    return model


def bare(dataset: Dataset) -> None:
    """A loop over normalised tensors in memory, in the order they lie in: no log, no checkpoint, no augmentation."""
    images = dataset.normalise(dataset.train.images)
    with Key.of(0, "bench").forked():
        model = timm_network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    for x, y in zip(images.split(BATCH), dataset.train.labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def step(repeats: int) -> list[Finding]:
    """The trainer, without and with augmentation, against a bare loop over timm's network: a whole epoch each."""
    dataset = random_data(STEPS * BATCH)
    plain, augmented = (TrainBatches(dataset, BATCH, Key.of(0), a) for a in ((), (Crop(), Flip())))
    calls = [lambda: bare(dataset), lambda: trainer(plain), lambda: trainer(augmented)]
    other, one, two = turns(calls, repeats)
    whose = "timm's ViT" if find_spec("timm") is not None else "our ViT, as timm is not installed"
    told = f"bare loop, {whose}, {STEPS} steps"
    return [
        Comparison("step", "trainer", told, one, other, within(1.02)),
        Comparison("step, epoch with augmentation", "trainer, crop and flip", told, two, other, within(1.05)),
    ]


def checkpoint(repeats: int) -> list[Finding]:
    """A checkpoint every 50 steps against one at the end."""
    batches = TrainBatches(random_data(CHECKPOINT_STEPS * BATCH), BATCH, Key.of(0))
    often = ("checkpoint every 50 steps", lambda: trainer(batches, checkpoint_every=50))
    return [compare("checkpoint", often, ("one at the end", lambda: trainer(batches)), repeats, within(1.02))]
