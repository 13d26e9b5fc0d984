"""The training step, the loader and checkpoints against loops that do no more than they must."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from modnet.bench.networks import BATCH, CLASSES, network, random_data, run_job
from modnet.bench.pairs import Comparison, compare
from modnet.data import Dataset
from modnet.data.loaders import TrainBatches
from modnet.engine.batch import Batches
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import Train
from modnet.recipe.training import AdamW, Crop, Flip, Schedule

STEPS, CHECKPOINT_STEPS = 120, 100
DEPTHS = (1, 1, 1, 1)


def trainer(batches: Batches, **settings: object) -> None:
    """One epoch by the trainer, one validation's bookkeeping, metrics log and checkpoint included."""
    values = {"data": "random", "model": "vit", "optimizer": AdamW(), "schedule": Schedule(warmup=0), **settings}
    chain = network(48, DEPTHS, stem="patch")
    run_job(WholeNetwork(chain, 0.0), {TRACK: chain}, batches, Train.model_validate(values))


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


def step(repeats: int) -> list[Comparison]:
    """The trainer against a bare loop over timm's network: without and with augmentation on our side."""
    dataset = random_data(STEPS * BATCH)
    loop = (f"bare loop, timm's ViT, {STEPS} steps", lambda: bare(dataset))
    plain, augmented = (TrainBatches(dataset, BATCH, Key.of(0), a) for a in ((), (Crop(), Flip())))
    return [
        compare("step", ("trainer", lambda: trainer(plain)), loop, repeats),
        compare("step, epoch with augmentation", ("trainer, crop and flip", lambda: trainer(augmented)), loop, repeats),
    ]


def checkpoint(repeats: int) -> list[Comparison]:
    """A checkpoint every 50 steps against one at the end."""
    batches = TrainBatches(random_data(CHECKPOINT_STEPS * BATCH), BATCH, Key.of(0))
    often = ("checkpoint every 50 steps", lambda: trainer(batches, checkpoint_every=50))
    return [compare("checkpoint", often, ("one at the end", lambda: trainer(batches)), repeats)]


def loader(repeats: int) -> list[Comparison]:
    """Augmented batches from memory against torchvision's own way: a Dataset of PIL images and a DataLoader.

    As in torchvision's Fashion-MNIST: the image becomes a PIL image, then RandomCrop, RandomHorizontalFlip, ToTensor
    and Normalize, one image at a time, in the process itself, which for such small images is the fastest.
    """
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    dataset = random_data(8 * BATCH)
    batches = TrainBatches(dataset, BATCH, Key.of(0), (Crop(), Flip()))
    change = transforms.Compose(
        [
            transforms.RandomCrop(28, padding=2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
        ]
    )

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(dataset.train)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            image = Image.fromarray(dataset.train.images[row, 0].numpy())
            return change(image), int(dataset.train.labels[row])

    def ours() -> None:
        for _ in islice(batches.epoch(0), None):
            pass

    def theirs() -> None:
        for _ in DataLoader(Images(), BATCH, shuffle=True, generator=Key.of(0).generator()):
            pass

    return [compare("loader", ("batched, keyed", ours), ("torchvision dataset and DataLoader", theirs), repeats)]
