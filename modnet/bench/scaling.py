"""Two processes against one, each on one thread: modules spread over them, and a batch shared by them.

What two processes could reach at most stands beside it: the FLOPs of all modules over those of the busier process,
as one process that trains all of them computes the frozen front once; two processes that each do the whole work of
one and talk to nobody (what the machine gives); two that each train on halves of the batches alone (what a step loses
with half of the images). Processes are started once and time themselves, so that starting Python does not count.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterable, Sequence
from functools import partial
from multiprocessing.queues import Queue
from queue import Empty
from typing import Self

import torch

from modnet.bench.modules import Phase
from modnet.bench.networks import BATCH, network, random_data, run_job
from modnet.bench.pairs import Call, Comparison, Finding, Measure, faster, rounds, timed
from modnet.data.loaders import TrainBatches
from modnet.engine.ranks import SOLO, Team, dealt, join
from modnet.errors import RunFailed
from modnet.evaluation.cost import flop_counter
from modnet.methods.base import module_name
from modnet.methods.m2mkd import M2mkdObjective
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import Train
from modnet.recipe.training import AdamW, Schedule

MODULES, BLOCKS, STEPS = 4, 2, 16
RATE = "times the rate of one"
SHARED_STEPS = {48: 96, 192: 16}  # by the width of whole networks: that of the shipped recipes, and of ViT-Ti


def scaling(repeats: int) -> list[Finding]:
    """How many times as fast two processes are as one, and the most they could be; 2 needs two idle cores."""
    with Crew(1) as one, Crew(2) as two:
        return [*_spread(one, two, repeats), *(f for width in SHARED_STEPS for f in _shared(one, two, width, repeats))]


def _spread(one: Crew, two: Crew, repeats: int) -> list[Finding]:
    calls = [partial(one.timed, "modules"), partial(two.timed, "modules"), partial(two.timed, "whole")]
    alone, spread, whole = rounds(calls, repeats + 1, untimed=1)
    machine = tuple(2 * a / b for a, b in zip(alone, whole, strict=True))
    return [
        Comparison("scaling modules", "modules spread over 2 processes", "1 process", spread, alone, faster(1.85)),
        Measure("scaling, by FLOPs", "all modules over the share of the busier of 2 processes", "times", (by_flops(),)),
        Measure("scaling, what the machine gives", "2 processes that each train all modules", RATE, machine),
    ]


def _shared(one: Crew, two: Crew, width: int, repeats: int) -> list[Finding]:
    data, halves = f"data {width}", f"halves {width}"
    calls = [partial(one.timed, data), partial(two.timed, data), partial(two.timed, halves)]
    alone, shared, half = rounds(calls, repeats + 1, untimed=1)
    apart = tuple(a / b for a, b in zip(alone, half, strict=True))
    name = f"scaling data, width {width}"
    return [
        Comparison(name, "batches shared by 2 processes", "1 process", shared, alone, faster(1.7)),
        Measure(f"{name}, halves", "2 processes that each train on half batches", RATE, apart),
    ]


class Crew:
    """Processes of one thread each that wait for work and time it together."""

    def __init__(self, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.times: Queue[float] = context.Queue()
        self.asked: list[Queue[str | None]] = [context.Queue() for _ in range(count)]
        self.ranks = [
            context.Process(target=_work, args=(rank, count, port, asked, self.times), daemon=True)
            for rank, asked in enumerate(self.asked)
        ]
        for process in self.ranks:
            process.start()

    def timed(self, way: str) -> float:
        """Seconds of the slowest process."""
        self._ask(way)
        return max(self._next() for _ in self.ranks)

    def _next(self) -> float:
        while True:
            try:
                return self.times.get(timeout=1)
            except Empty:
                if not all(process.is_alive() for process in self.ranks):
                    raise RunFailed("a process of the benchmark ended early; its error stands above") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(None)
        for process in self.ranks:
            process.join(timeout=30)
            process.terminate()

    def _ask(self, way: str | None) -> None:
        for asked in self.asked:
            asked.put(way)


def _work(rank: int, count: int, port: int, asked: Queue[str | None], times: Queue[float]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join(torch.device("cpu"))
    phase, mine, team = Phase(MODULES, BLOCKS, STEPS), _shares(count)[rank], world.deal([1.0]).team
    ways: dict[str, Call] = {
        "modules": partial(_modules, phase, mine),
        "whole": partial(_modules, phase, range(MODULES)),
    }
    for width, steps in SHARED_STEPS.items():
        batches, halves = (TrainBatches(random_data(steps * n), n, Key.of(0)) for n in (BATCH, BATCH // 2))
        ways[f"data {width}"] = partial(_data, width, batches, team)
        ways[f"halves {width}"] = partial(_data, width, halves)
    while (way := asked.get()) is not None:
        world.team.wait()
        times.put(timed(ways[way]))


def _shares(count: int) -> list[Sequence[int]]:
    """The modules of each process. The first module has the longest tail: costs fall along the chain."""
    return [mine for mine, _ in dealt([float(1 + MODULES - i) for i in range(MODULES)], count)]


def by_flops() -> float:
    """How many times the FLOPs of the busier of two processes one takes that trains all modules, in a step."""
    phase = Phase(MODULES, BLOCKS, steps=1)

    def flops(mine: Iterable[int]) -> int:
        with flop_counter() as counter:
            _modules(phase, mine)
        return int(counter.get_total_flops())

    return flops(range(MODULES)) / max(flops(mine) for mine in _shares(2))


def _modules(phase: Phase, mine: Iterable[int]) -> None:
    chains = {i: chain for i, chain in phase.learners().items() if i in mine}
    objective = M2mkdObjective(phase.meta, phase.teacher, chains, phase.stage)
    run_job(objective, {module_name(i): c for i, c in chains.items()}, phase.batches, phase.stage)


def _data(width: int, batches: TrainBatches, team: Team = SOLO) -> None:
    settings = Train(data="random", model="vit", optimizer=AdamW(), schedule=Schedule(warmup=0))
    chain = network(width, (1, 1, 1, 1))
    run_job(WholeNetwork(chain, 0.0), {TRACK: chain}, batches, settings, team)
