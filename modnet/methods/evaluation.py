"""``run: evaluate``: finished stages on test sets and shift suites, which no other stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modnet.chain import Chain
from modnet.data import Suite, load_suite
from modnet.errors import RequestError
from modnet.evaluation.cost import cost
from modnet.evaluation.shift import SuiteScores, measure_suite
from modnet.evaluation.throughput import throughput
from modnet.methods.base import BEFORE, NETWORK, Inputs
from modnet.methods.costs import stage_costs
from modnet.recipe import resolve_suite
from modnet.recipe.stages import Evaluate

Row = dict[str, Any]


@dataclass
class Evaluation:
    """Rows of metrics by evaluated stage: accuracies in percent, NLL in nats, cost beside them."""

    stage: Evaluate
    inputs: Inputs

    def suites(self) -> list[tuple[Suite, str | None]]:
        """The test sets and shift suites to measure on, each with its shift's name."""
        found = []
        for name in self.stage.on:
            params, shift = resolve_suite(name, self.inputs.recipe)
            found.append((load_suite(name, params, shift, self.stage.limit), shift))
        return found

    def rows(self) -> dict[str, Row]:
        """A row of metrics for every evaluated stage."""
        suites = self.suites()
        rows = {}
        for name in self.stage.of:
            self.inputs.say(f"evaluating {name}")
            rows[name] = self.row(name, suites)
        return rows

    def row(self, name: str, suites: list[tuple[Suite, str | None]]) -> Row:
        """All metrics of one stage: the test set's under their bare names, a shift's under ``shift_…``."""
        folder = self.inputs.folder(name)
        network = self.inputs.stored(name, NETWORK)
        row: Row = {"shifts": {}}
        first = suites[0][0]
        if (folder / f"{BEFORE}.json").exists():
            before = self.inputs.stored(name, BEFORE)
            row["before"] = measure_suite(before, first, self.stage.batch).mean.top1
        for suite, shift in suites:
            fits(network, suite)
            scores = measure_suite(network, suite, self.stage.batch)
            row |= headline(shift, scores, row)
            if shift is not None:
                row["shifts"][suite.name] = scores.table()
        port = first.dataset.port
        counted = cost(network, port)
        row |= {"parameters": counted.parameters, "macs": counted.macs, **stage_costs(name, self.inputs)}
        if self.stage.throughput:
            row["images_per_second"] = throughput(network, port)
        return row


def headline(shift: str | None, scores: SuiteScores, row: Row) -> Row:
    """Mean scores of a suite; the first shift suite also gives the plain ``shift_top1``."""
    means = scores.mean.as_dict()
    if shift is None:
        return means
    named = {f"shift_{shift}_{metric}": value for metric, value in means.items()}
    return named if "shift_top1" in row else {**named, "shift_top1": means["top1"]}


def fits(network: Chain, suite: Suite) -> None:
    """Raises RequestError if the network tells another number of classes apart than the suite has."""
    classes = network.gives["classes"] if network.gives is not None else None
    if classes not in (None, len(suite.dataset.classes)):
        raise RequestError(
            f"the network tells {classes} classes apart, {suite.name} has {len(suite.dataset.classes)}; "
            "evaluate on the data that it was trained for"
        )
