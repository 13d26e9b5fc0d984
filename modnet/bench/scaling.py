"""Two processes against one, each on one thread: modules spread over them, and a batch shared by them.

Processes are started once and time themselves from a common start, so that starting Python does not count.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from multiprocessing.queues import Queue
from typing import Any

import torch

from modnet.bench.modules import Phase
from modnet.bench.networks import BATCH, network, random_data, run_job
from modnet.bench.pairs import Comparison, Finding, faster
from modnet.data.loaders import TrainBatches
from modnet.engine.ranks import dealt, join
from modnet.methods.base import module_name
from modnet.methods.m2mkd import M2mkdObjective
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import Train
from modnet.recipe.training import AdamW, Schedule

MODULES, BLOCKS, STEPS = 4, 2, 6


def scaling(repeats: int) -> list[Finding]:
    """How many times as fast two processes are as one; 2 would be ideal on two idle cores."""
    ways = {"modules": ("modules spread over", faster(1.85)), "data": ("batches shared by", faster(1.7))}
    found: list[Finding] = []
    for way, (told, aim) in ways.items():
        alone, together = (tuple(_timed(way, count, repeats)) for count in (1, 2))
        found.append(Comparison(f"scaling {way}", f"{told} 2 processes", "1 process", together, alone, aim))
    return found


def _timed(way: str, count: int, repeats: int) -> list[float]:
    """Seconds of each repeat: of the slowest process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue: Queue[Any] = context.Queue()
    ranks = [context.Process(target=_work, args=(rank, way, count, port, repeats, queue)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    each = [queue.get(timeout=3600) for _ in ranks]
    for rank in ranks:
        rank.join()
    return [max(times) for times in zip(*each, strict=True)]


def _work(rank: int, way: str, count: int, port: int, repeats: int, queue: Queue[Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join(torch.device("cpu"))
    run = _modules(rank, count) if way == "modules" else _data(world)
    found = []
    for repeat in range(repeats + 1):
        world.team.wait()
        start = time.perf_counter()
        run()
        if repeat:
            found.append(time.perf_counter() - start)
    queue.put(found)


def _modules(rank: int, count: int) -> Any:
    phase = Phase(MODULES, BLOCKS, STEPS)
    # The first module has the longest tail: costs fall along the chain.
    mine, _ = dealt([float(1 + MODULES - i) for i in range(MODULES)], count)[rank]

    def run() -> None:
        chains = {i: chain for i, chain in phase.learners().items() if i in mine}
        objective = M2mkdObjective(phase.meta, phase.teacher, chains, phase.stage)
        run_job(objective, {module_name(i): c for i, c in chains.items()}, phase.batches, phase.stage)

    return run


def _data(world: Any) -> Any:
    batches = TrainBatches(random_data(STEPS * BATCH), BATCH, Key.of(0))
    settings = Train(data="random", model="vit", optimizer=AdamW(), schedule=Schedule(warmup=0))
    team = world.deal([1.0]).team

    def run() -> None:
        chain = network(48, (1, 1, 1, 1))
        run_job(WholeNetwork(chain, 0.0), {TRACK: chain}, batches, settings, team)

    return run
