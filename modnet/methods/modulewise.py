"""What the methods that train modules apart share: frozen surroundings, one track a module, fused or one by one.

All modules of a fused run share one pass through the frozen front parts. Each module has its own loss, its own
optimizer and its own random draws, so fused training gives the same weights as one module after another. What frozen
parts give is named (``into2``: what enters the host's module 2), so that it can be computed once and replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modnet.chain import Chain, Pass
from modnet.engine.batch import Batch
from modnet.engine.choices import Choice
from modnet.engine.job import Job, Metrics
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cost import training_flops
from modnet.methods.base import Kept, Method, module_name
from modnet.methods.fusing import (
    free_bytes,
    group_name,
    grouping,
    in_rows,
    joining,
    saved_bytes,
    trial_batch,
    width_that_fits,
)

LEAST_STEPS = 100  # of a stage, for a trial that costs about ten
Known = dict[str, Tensor]  # what frozen parts give for a batch, by name, each of B rows


def into(i: int) -> str:
    """The name of what enters the host's module ``i``."""
    return f"into{i}"


class ModuleObjective(nn.Module):
    """A loss for each of several modules that stand, one at a time, in the place of a frozen host's module.

    ``joined``: outputs of several modules pass the host's modules behind them in one batch, else one after another.
    """

    joined = False
    tailed = True  # whether losses stand at the end of the host's tail

    def __init__(self, host: Chain, modules: Mapping[int, Chain]) -> None:
        super().__init__()
        self.places = sorted(modules)
        self.front = nn.ModuleList(host[i].frozen() for i in range(max(self.places)))
        self.behind = nn.ModuleDict({str(j): host[j].frozen() for j in range(min(self.places) + 1, len(host))})
        self.tails = nn.ModuleDict({str(i): host[i + 1 :].frozen() for i in self.places})
        self.learners = nn.ModuleDict({str(i): modules[i] for i in self.places})

    def entering(self, x: Tensor, known: Known) -> Known:
        """What enters the host's modules up to the last one that is trained, by name; computed where not known."""
        if all(into(i) in known for i in self.places if i):
            return {into(0): x} | known
        flowing = {into(0): x}
        for i, part in enumerate(self.front):
            flowing[into(i + 1)] = part(flowing[into(i)])
        return flowing | known

    def frozen_outputs(self, x: Tensor, known: Known) -> Known:
        """All that frozen parts give for images (B, …), no gradient; what is ``known`` is not computed again."""
        with torch.no_grad():
            return self.entering(x, known)

    def replayable(self, prefix: bool) -> list[str]:
        """Names of the frozen outputs that can be stored; ``prefix``: the host's own features as well."""
        return [into(i) for i in self.places if i] if prefix else []

    def given(self, batch: Batch) -> dict[int, Tensor]:
        """What each module gives for a batch in a pass that draws nothing."""
        known = self.entering(batch.x, {})
        return {i: self.learners[str(i)](known[into(i)]) for i in self.places}

    def forward(self, batch: Batch, ctx: Pass) -> dict[str, Tensor]:
        """A scalar loss for every module's track."""
        return {name: loss for losses in self.apart(batch, ctx) for name, loss in losses.items()}

    def apart(self, batch: Batch, ctx: Pass) -> Iterator[dict[str, Tensor]]:
        """The losses, module after module (all at once where they are joined), on graphs that share nothing."""
        known = self.frozen_outputs(batch.x, batch.replayed())
        for places in [self.places] if self.joined else [[i] for i in self.places]:
            passes = {i: ctx.enter("module", i) for i in places}
            given = {i: self.learners[str(i)](known[into(i)], own) for i, own in passes.items()}
            ended = self.ended(given)
            yield {
                module_name(i): sum(own.losses.values(), self.loss(i, given[i], ended[i], known, batch))
                for i, own in passes.items()
            }

    def ended(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The logits that each module's output becomes behind it; the outputs themselves where no tail is needed."""
        return self.through(given)

    def through(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What each module's output becomes at the end of the host's tail behind it."""
        if not self.joined:
            return {i: self.tails[str(i)](x) for i, x in given.items()}
        flowing: dict[int, Tensor] = {}
        for j in range(min(given), max(*given, *map(int, self.behind)) + 1):
            if flowing:
                rows = [len(x) for x in flowing.values()]
                passed = self.behind[str(j)](torch.cat(list(flowing.values())))
                flowing = dict(zip(flowing, passed.split(rows), strict=True))
            if j in given:
                flowing[j] = given[j]
        return flowing

    def loss(self, i: int, given: Tensor, ended: Tensor, known: Known, batch: Batch) -> Tensor:
        """The loss of module ``i``, which gave ``given``, at the end of the tail ``ended``."""
        raise NotImplementedError


class ModulewiseMethod(Method):
    """A method with one track for each module; subclasses set ``host`` and ``learners`` and give the objective.

    ``fused``: True for as many modules at once as fit the memory, a number for at most so many, False for one by one.
    """

    host: Chain
    learners: list[Chain]
    fused: bool | int
    _groups: list[list[int]] | None = None

    def objective(self, places: list[int]) -> ModuleObjective:
        """The objective of the modules at some places."""
        raise NotImplementedError

    def jobs(self) -> list[Job]:
        """A job for each group of modules that is trained side by side."""
        return [self._job(places) for places in self.groups()]

    def taught(self, objective: ModuleObjective) -> ModuleObjective:
        """The objective of all modules: one replay serves every job, however they are grouped."""
        return objective if len(objective.places) == len(self.learners) else self.objective(self.every)

    @property
    def every(self) -> list[int]:
        """The places of all modules."""
        return list(range(len(self.learners)))

    def groups(self) -> list[list[int]]:
        """The places of the modules of each job.

        Where that is left to modnet it is chosen at the first start, by memory and number of processes, and obeyed
        later, so that a stage goes on from its checkpoints in any number of processes.
        """
        if self._groups is None:  # asked once, as all processes have to ask together
            if self.fused is True:
                found = self.inputs.chosen("fused", self._grouping, "modules at once").value
                self._groups = [[int(i) for i in places] for places in found]
            else:
                self._groups = in_rows(len(self.learners), max(int(self.fused), 1))
        return self._groups

    def _grouping(self) -> Choice:
        objective, batch = self.objective([0]), self._trial_batch()
        one = saved_bytes(lambda few: objective(few, Pass()), batch) * len(batch)
        fitting = width_that_fits(len(self.learners), one, free_bytes(self.inputs.device))
        return grouping(self.module_costs(), fitting, self.inputs.world.size)

    def module_costs(self) -> list[float]:
        """Training FLOPs of each module for an image: itself, and the tail behind it."""
        port, last = self.dataset.port, len(self.learners) - 1
        costs = [training_flops(learner, learner.takes or port) for learner in self.learners]
        tails = [self.host[i + 1 :] for i in range(last)]
        return [
            cost + (training_flops(tails[i].frozen(), tails[i].takes or port, input_grad=True) if i < last else 0)
            for i, cost in enumerate(costs)
        ]

    def job_costs(self) -> list[float]:
        """Training FLOPs of each job for an image."""
        costs = self.module_costs()
        return [sum(costs[i] for i in places) for places in self.groups()]

    def _job(self, places: list[int]) -> Job:
        tracks = [self.track(module_name(i), self.learners[i]) for i in places]
        objective = self.objective(places)
        if len(places) > 1 and objective.tailed:
            objective.joined = self._joined(objective)
        return self.job(group_name(places, len(self.learners)), objective, tracks, lambda: self.validate(places))

    def _joined(self, objective: ModuleObjective) -> bool:
        """Whether modules pass the tail in one batch; not tried where all training is hardly longer than the trial."""
        steps = self.stage.epochs * (len(self.dataset.train) // self.stage.batch)
        uneven = self.stage.batch % self.stage.accumulate != 0 or self.stage.dtype == "auto"
        if steps < LEAST_STEPS or uneven or self.inputs.device.type == "meta":  # a plan has nothing to time
            return False
        dtype = torch.bfloat16 if self.stage.dtype == "bf16" else None
        alone = len(self.groups()) == 1  # the bits of another group may be others
        name = "joined" if alone else f"joined in {group_name(objective.places, len(self.learners))}"
        made = self.inputs.chosen(name, lambda: joining(objective, self._trial_batch(), dtype), "tail in one batch")
        return bool(made.value)

    def _trial_batch(self) -> Batch:
        """Training images as many as a micro-batch holds."""
        rows = min(self.stage.batch, len(self.dataset.train))
        rows = -(-rows // self.stage.accumulate)
        images, _ = next(self.dataset.train.batches(rows))
        x = self.dataset.normalise(images.to(self.inputs.device))
        return trial_batch(x, rows, len(self.dataset.classes))

    def hybrid(self, i: int) -> Chain:
        """The host with module ``i`` in its place, for measuring."""
        return self.host[:i] + self.learners[i] + self.host[i + 1 :]

    def validate(self, places: list[int]) -> dict[str, Metrics]:
        """Accuracy of every hybrid on val: the number that foretells assembly."""
        return {module_name(i): measure(self.hybrid(i), self.dataset.val, self.dataset).as_dict() for i in places}

    def keep(self, metrics: Mapping[str, Metrics]) -> Kept:
        """Every module with its stitches, and each hybrid's accuracy on val."""
        names = [module_name(i) for i in range(len(self.learners))]
        facts: dict[str, Any] = {"modules": len(names), "hybrid_val_top1": [metrics[name]["top1"] for name in names]}
        return Kept(dict(zip(names, self.learners, strict=True)), facts)

    def flops(self) -> dict[str, float]:
        """The modules forward and backward; the host's front, once a group, and its tail behind every module."""
        port, last = self.dataset.port, len(self.learners) - 1
        student = sum(training_flops(learner, learner.takes or port) for learner in self.learners)
        fronts = [self.host[: places[-1]] for places in self.groups()]
        tails = [self.host[i + 1 :] for i in range(last)]
        passes = sum(training_flops(front.frozen(), port) for front in fronts if front)
        passes += sum(training_flops(tail.frozen(), tail.takes or port, input_grad=True) for tail in tails)
        return {"student": student, "passes": passes}
