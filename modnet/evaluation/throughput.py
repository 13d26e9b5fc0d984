"""How many images a network classifies in a second."""

from __future__ import annotations

import time
from statistics import median

import torch

from modnet.chain import Chain, Port
from modnet.evaluation.accuracy import evaluating
from modnet.evaluation.cost import example


def throughput(chain: Chain, port: Port, batch: int = 128, repeats: int = 5, warmup: int = 1) -> float:
    """Images per second of the forward pass in evaluation mode: the median over ``repeats`` batches.

    Measured on the chain's device with as many threads as torch uses; data preparation not counted.
    """
    first = next(chain.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    images = example(port, batch, device)
    with evaluating(chain):
        times = [_seconds(chain, images) for _ in range(warmup + repeats)]
    return batch / median(times[warmup:])


def _seconds(chain: Chain, images: torch.Tensor) -> float:
    _wait(images.device)
    start = time.perf_counter()
    chain(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
