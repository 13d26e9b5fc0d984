"""bf16 against fp32, and how much of a training step is the arithmetic that it must do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from modnet.bench.machine import bf16_missing
from modnet.bench.networks import CLASSES, job_of, random_data, run_job
from modnet.bench.pairs import Aim, Comparison, Finding, Measure, Skipped, faster, rounds, timed
from modnet.bench.profiles import shares
from modnet.chain import Chain, Port
from modnet.data.loaders import TrainBatches
from modnet.engine.batch import Batch, Batches
from modnet.engine.trials import dtype_trial
from modnet.evaluation.cost import training_flops
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.recipe.stages import Train
from modnet.recipe.training import AdamW, Schedule

IMAGE = Port.of("image", channels=3, size=64)
PATCH, HEAD = 8, 64  # pixels, and channels of a head
BATCH, STEPS, BLOCKS = 64, 5, 4
WIDTHS = {64: None, 192: faster(2.3), 384: faster(3.0)}
NO_SLOWER = faster(1.0)
SIZE = {"width": 384, "blocks": 12}  # ViT-S
EFFICIENT = {"fp32": Aim("least", 0.9, "value"), "bf16": Aim("least", 0.65, "value")}
TRIES = 3  # of a matrix product, of which the median counts


class Clocked:
    """Batches that note how long each step took that was made with them; ``between`` steps something else is done."""

    def __init__(self, batches: Batches, between: Callable[[], object] = lambda: None) -> None:
        self.batches, self.between = batches, between
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self.seconds: list[float] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; of the last one's step nothing is noted, as nobody asks for the next."""
        for batch in self.batches.epoch(epoch, start):
            self.between()
            began = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - began)


class Training:
    """Training steps of a ViT by the trainer; the weights are float32 whatever the dtype."""

    def __init__(self, width: int, blocks: int, steps: int) -> None:
        # The mean of all tokens, so that each is computed to the end, as the FLOPs are counted.
        sizes = {"width": width, "depths": (blocks,), "heads": max(1, width // HEAD)}
        self.params = ViT.model_validate({**sizes, "patch": PATCH, "pool": "mean"})
        self.batches = TrainBatches(random_data(steps * BATCH, IMAGE), BATCH, Key.of(0))

    def network(self) -> Chain:
        """A fresh network."""
        with Key.of(0, "bench").forked():
            return vit(self.params, IMAGE, CLASSES)

    def seconds(self, dtype: str, between: Callable[[], object] = lambda: None) -> list[float]:
        """Seconds of each step but the first, which warms up, and the last."""
        chain, clocked = self.network(), Clocked(self.batches, between)
        run_job(WholeNetwork(chain, 0.0), {TRACK: chain}, clocked, settings(dtype))
        return clocked.seconds[1:]

    def typical(self, dtype: str) -> float:
        """The median of :meth:`seconds`."""
        return median(self.seconds(dtype))

    def chosen(self) -> str:
        """What ``dtype: auto`` takes."""
        chain = self.network()
        job = job_of(WholeNetwork(chain, 0.0), {TRACK: chain}, self.batches, settings("auto"))
        return str(dtype_trial(job, torch.device("cpu")).value)


def settings(dtype: str) -> Train:
    """A stage that trains with AdamW."""
    values = {"data": "random", "model": "vit", "optimizer": AdamW(), "schedule": Schedule(warmup=0), "dtype": dtype}
    return Train.model_validate(values)


def bf16(repeats: int) -> list[Finding]:
    """Steps in bf16, and in what ``dtype: auto`` takes, against fp32; the trial by which it chooses does not count."""
    if why := bf16_missing():
        return [Skipped("bf16", why)]
    found: list[Finding] = []
    for width, aim in WIDTHS.items():
        training = Training(width, BLOCKS, STEPS)
        half, full = rounds([partial(training.typical, dtype) for dtype in ("bf16", "fp32")], repeats)
        chosen = training.chosen()
        own = half if chosen == "bf16" else full
        what = f"training step, width {width}"
        found += [
            Comparison(f"bf16, width {width}", f"{what}, bf16", "fp32", half, full, aim),
            Comparison(f"dtype auto, width {width}", f"{what}, auto: {chosen}", "fp32", own, full, NO_SLOWER),
        ]
    return found


def efficiency(repeats: int) -> list[Finding]:
    """FLOPs of a training step of ViT-S at 64 pixels over its time, as a share of what matrix products reach here."""
    return [_efficiency(dtype, aim, repeats) for dtype, aim in EFFICIENT.items()]


def _efficiency(dtype: str, aim: Aim, repeats: int) -> Finding:
    if dtype == "bf16" and (why := bf16_missing()):
        return Skipped("efficiency bf16", why)
    training, rates = Training(**SIZE, steps=repeats + 2), list[float]()
    flops = BATCH * training_flops(training.network(), IMAGE)
    seconds = training.seconds(dtype, lambda: rates.append(gemm_rate(dtype)))
    reached = [flops / spent / rate for spent, rate in zip(seconds, rates[1:], strict=False)]
    told = f"products alone {median(rates) / 1e9:.0f} GFLOP/s, the step {flops / median(seconds) / 1e9:.0f}"
    if where := shares(lambda: Training(**SIZE, steps=3).seconds(dtype)):
        told += f"; a profile: {where}"
    what = f"arithmetic of a ViT-S step, 64 pixels, {dtype}"
    return Measure(f"efficiency {dtype}", what, "of the GEMM rate", tuple(reached), aim, told)


def gemm_rate(dtype: str) -> float:
    """FLOPs a second of the matrix products in a block, forward and backward, each weighed by its FLOPs."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    width, rows = SIZE["width"], BATCH * ((IMAGE["size"] // PATCH) ** 2 + 1)
    flops, seconds, source = 0.0, 0.0, Key.of(0).generator()
    for out, given in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        x, w, g = (
            torch.randn(*shape, generator=source).to(kind) for shape in ((rows, given), (out, given), (rows, out))
        )
        for left, right in ((x, w.t()), (g, w), (g.t(), x)):
            flops += 2.0 * rows * given * out
            seconds += median(timed(partial(torch.mm, left, right)) for _ in range(TRIES))
    return flops / seconds
