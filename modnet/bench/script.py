"""timm's training script against the trainer on Fashion-MNIST: time of an epoch, and time to the same test accuracy.

The baseline is what ``train.py`` of timm does (github.com/huggingface/pytorch-image-models; it is not in the wheel)
for one process without mixed precision, written plainly: timm's ``create_loader`` with 2 workers and its prefetcher,
``create_optimizer_v2``, ``create_scheduler_v2`` with an update in every step, a running mean of the losses. It neither
validates, logs nor saves, which the script does after every epoch and which would only make it slower. It trains timm's
VisionTransformer, the trainer ours of the same size, on the same images with the same crop and flip.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional as F

from modnet.bench.loading import WORKERS, Images
from modnet.bench.networks import BATCH, fashion_mnist
from modnet.bench.pairs import Comparison, Finding, Skipped, faster, timed
from modnet.bench.steps import timm_network, trainer
from modnet.data import Dataset
from modnet.data.loaders import TrainBatches
from modnet.evaluation.accuracy import measure
from modnet.randomness import Key
from modnet.recipe.training import AdamW, Crop, Flip, Muon, Schedule

EPOCHS, OURS = 10, 4  # of the script, and of the trainer
RATE, WARMUP = 1e-3, 1  # of the script: learning rate, and epochs to reach it


class Script:
    """Timm's script, an epoch at a time."""

    def __init__(self, dataset: Dataset) -> None:
        optim, scheduler = import_module("timm.optim"), import_module("timm.scheduler")
        self.dataset, self.loader = dataset, timm_loader(dataset)
        with Key.of(0, "bench").forked():
            self.model = timm_network().train()
        self.optimizer = optim.create_optimizer_v2(self.model, opt="adamw", lr=RATE, weight_decay=0.05)
        self.scheduler, _ = scheduler.create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=EPOCHS,
            warmup_epochs=WARMUP,
            warmup_lr=1e-5,
            min_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=len(self.loader),
        )

    def epoch(self, epoch: int) -> None:
        """One pass through the training images."""
        losses = import_module("timm.utils").AverageMeter()
        self.model.train()
        for updates, (x, y) in enumerate(self.loader, 1 + epoch * len(self.loader)):
            loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.update(loss.item(), len(x))
            self.scheduler.step_update(num_updates=updates, metric=losses.avg)
        self.scheduler.step(epoch + 1, losses.avg)

    @torch.inference_mode()
    def top1(self) -> float:
        """Accuracy on the test images in percent."""
        self.model.eval()
        test = self.dataset.test
        hits = sum(int((self.model(self.dataset.normalise(x)).argmax(1) == y).sum()) for x, y in test.batches(512))
        return 100 * hits / len(test)


def timm_loader(dataset: Dataset) -> Any:
    """Timm's loader and prefetcher over PIL images; its workers go on from epoch to epoch."""
    from torchvision import transforms

    data: Any = import_module("timm.data")
    made = data.create_loader(
        Images(dataset.train),
        (1, 28, 28),
        BATCH,
        is_training=True,
        mean=dataset.mean,
        std=dataset.std,
        num_workers=WORKERS,
        device=torch.device("cpu"),
        persistent_workers=WORKERS > 0,
    )
    # The script's own choice of transforms has no crop of a padded image.
    moved = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()]
    made.dataset.transform = transforms.Compose([*moved, data.transforms.MaybePILToTensor()])
    return made


def timm_script(repeats: int) -> list[Finding]:
    """Epochs of both by turns; then the trainer with Muon for fewer epochs, against all ten of the script."""
    name = "timm-script"
    if (dataset := fashion_mnist()) is None:
        return [Skipped(name, "Fashion-MNIST is not here")]
    try:
        script = Script(dataset)
    except ImportError:
        return [Skipped(name, "timm is not installed")]
    batches = TrainBatches(dataset, BATCH, Key.of(0), (Crop(), Flip()))
    theirs, ours = [], []
    for epoch in range(EPOCHS):
        theirs.append(timed(partial(script.epoch, epoch)))
        if epoch <= repeats:
            ours.append(timed(lambda: trainer(batches)))
    told = f"timm's script, {WORKERS} workers"
    shown = slice(1, 1 + repeats)  # the first one starts workers and warms up
    first = Comparison(
        f"{name} epoch", "trainer, crop and flip", told, tuple(ours[shown]), tuple(theirs[shown]), faster(1.1)
    )
    return [first, _to_accuracy(script, batches, sum(theirs))]


def _to_accuracy(script: Script, batches: TrainBatches, theirs: float) -> Comparison:
    """Time of our shorter training, whose test accuracy must not be below the script's."""
    own: list[float] = []
    seconds = timed(lambda: own.append(ours_top1(script.dataset, batches, OURS)))  # measuring is counted
    aim, target = script.top1(), f"timm's script, {EPOCHS} epochs of AdamW"
    note = f"on test {own[0]:.2f} % in {OURS} epochs, the script {aim:.2f} % in {EPOCHS}"
    name, what = "timm-script, time to its accuracy", f"trainer, {OURS} epochs of Muon"
    return Comparison(name, what, target, (seconds,), (theirs,), faster(3), note, also=own[0] >= aim)


def ours_top1(dataset: Dataset, batches: TrainBatches, epochs: int) -> float:
    """Train our network of the same size with Muon, as the shipped recipes do; accuracy on test in percent."""
    muon = Muon(others=AdamW(lr=0.01, betas=(0.9, 0.95)))
    chain = trainer(batches, epochs=epochs, optimizer=muon, schedule=Schedule(), select="last")
    return measure(chain, dataset.test, dataset).top1
