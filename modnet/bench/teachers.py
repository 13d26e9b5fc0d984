"""A whole student that learns from stored teacher outputs, against one whose teacher is computed in every step."""

from __future__ import annotations

import tempfile
from pathlib import Path

from modnet.bench.networks import BATCH, network, random_data, run_job
from modnet.bench.pairs import Finding, compare
from modnet.data.loaders import TrainBatches
from modnet.engine.batch import Batches
from modnet.methods.replaying import Filler, ReplayedBatches
from modnet.methods.supervised import TRACK, WholeNetwork
from modnet.randomness import Key
from modnet.recipe.stages import HintonKD, Replaying
from modnet.recipe.training import AdamW, Crop, Flip, MixupOrCutMix, Schedule

STEPS = 8


def teacher_cache(repeats: int) -> list[Finding]:
    """A student of 4 narrow blocks, a teacher of 8; filling the store counts once, in a comparison of its own."""
    constant = Schedule(name="constant", warmup=0)
    stage = HintonKD(data="d", student="s", teacher="t", optimizer=AdamW(), schedule=constant)
    teacher = network(64, (2, 2, 2, 2), seed=1)
    batches = TrainBatches(random_data(STEPS * BATCH), BATCH, Key.of(0), (Crop(), Flip(), MixupOrCutMix()))

    def student(source: Batches) -> None:
        chain = network(48, (1, 1, 1, 1))
        run_job(WholeNetwork(chain, 0.0, teacher, stage), {TRACK: chain}, source, stage)

    def filled(home: Path, store: str) -> ReplayedBatches:
        objective = WholeNetwork(network(48, (1, 1, 1, 1)), 0.0, teacher, stage)
        how = Replaying.model_validate({"store": store, "k": 5})
        replay, _ = Filler(objective, batches, stage, how, lambda text: None).ready(home, Key.of(0))
        return ReplayedBatches(batches, replay, objective.replayable(False))

    def first() -> None:
        with tempfile.TemporaryDirectory() as home:
            student(filled(Path(home), "fp32"))

    live = ("live teacher", lambda: student(batches))
    found: list[Finding] = []
    for store in ("fp32", "fp16", "top-k"):
        with tempfile.TemporaryDirectory() as home:
            stored = filled(Path(home), store)
            ours = (f"stored outputs, {store}", lambda s=stored: student(s))
            found.append(compare(f"teacher-cache {store}", ours, live, repeats))
    return [*found, compare("teacher-cache first student", ("stored first, then read", first), live, repeats)]
