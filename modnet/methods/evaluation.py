"""``run: evaluate``: finished stages on test sets and shift suites, which no other stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modnet.chain import Chain, Port
from modnet.data import Suite, load_suite
from modnet.errors import RequestError
from modnet.evaluation.cascade import mean_macs, strong_share
from modnet.evaluation.cost import cost
from modnet.evaluation.shift import SuiteScores, measure_suite
from modnet.evaluation.throughput import throughput
from modnet.layers.adapters import see
from modnet.layers.confidence import Cascade
from modnet.methods.base import BEFORE, NETWORK, Inputs
from modnet.methods.costs import stage_costs
from modnet.methods.few_shot import Adaptation
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

    def rows(self) -> list[Row]:
        """A row of metrics for every evaluated stage, in their order."""
        suites = self.suites()
        return [self.row(name, suites) for name in self.stage.of]

    def row(self, name: str, suites: list[tuple[Suite, str | None]]) -> Row:
        """All metrics of one stage.

        The first test set's stand under their bare names, the first shift suite's mean top-1 as ``shift_top1``, every
        suite's mean scores and each part's top-1 under ``suites``, in the order of ``on``; few-shot adaptation's mean
        top-1 as ``few_shot_top1``.
        """
        network = self.inputs.stored(name, NETWORK)
        measured = [(suite, shift, self.scores(name, network, suite)) for suite, shift in suites]
        row: Row = {"suites": [{"mean": s.mean.as_dict(), "top1": s.table()} for _, _, s in measured]}
        plain = [(suite, scores) for suite, shift, scores in measured if shift is None]
        if plain:
            suite, scores = plain[0]
            row |= scores.mean.as_dict() | self.before(name, suite)
        changed = [scores for _, shift, scores in measured if shift is not None]
        if changed:
            row["shift_top1"] = changed[0].mean.top1
        row |= self.val(name) | self.adapted(name, network)
        return row | self.costs(name, network, suites[0][0].dataset.port) | self.asked(network, suites[0][0])

    def scores(self, name: str, network: Chain, suite: Suite) -> SuiteScores:
        """A network's scores on a suite; raises RequestError if they do not fit each other."""
        fits(network, suite)
        self.inputs.say(f"measuring {name} on {suite.name}")
        return measure_suite(seeing(network, suite), suite, self.stage.batch)

    def adapted(self, name: str, network: Chain) -> Row:
        """Top-1 after adaptation to a few images of new classes, if that is asked for."""
        if self.stage.few_shot is None:
            return {}
        self.inputs.say(f"adapting {name} in {self.stage.few_shot.episodes} episodes")
        return Adaptation(self.stage.few_shot, self.inputs, self.inputs.key(self.stage)).row(network, self.stage.batch)

    def before(self, name: str, suite: Suite) -> Row:
        """Top-1 of an assembled network before it was fine-tuned."""
        if not (self.inputs.folder(name) / f"{BEFORE}.json").exists():
            return {}
        assembled = self.inputs.stored(name, BEFORE)
        return {"before": measure_suite(seeing(assembled, suite), suite, self.stage.batch).mean.top1}

    def val(self, name: str) -> Row:
        """Top-1 on val of the weights that the stage gave, as the stage measured it."""
        result = self.inputs.store.result(self.inputs.keys[name])
        metrics = result["metrics"].get(NETWORK, {})
        found = {"val_top1": metrics.get("top1", result.get("meta_val_top1"))}
        found["val_bits_per_byte"] = metrics.get("bits_per_byte")
        return {name: value for name, value in found.items() if value is not None}

    def asked(self, network: Chain, suite: Suite) -> Row:
        """Of a cascade: the share in percent of the first suite that the large network answers, and the mean MACs."""
        leaf = network.leaves[-1]
        if not isinstance(leaf, Cascade):
            return {}
        images, port = next(iter(suite.parts.values())), suite.dataset.port
        share = strong_share(leaf, images, suite.dataset, self.stage.batch)
        macs = mean_macs(leaf, port, share)
        return {"strong_share": 100 * share, "macs": macs, "macs_share": 100 * macs / cost(leaf.strong, port).macs}

    def costs(self, name: str, network: Chain, port: Port) -> Row:
        """Size, training cost and, if asked for, speed."""
        counted = cost(network, port)
        speed = {"images_per_second": throughput(network, port)} if self.stage.throughput else {}
        sizes = {"parameters": counted.parameters, "macs": counted.macs}
        if counted.active != counted.parameters:
            sizes["active_parameters"] = counted.active
        return {**sizes, **stage_costs(name, self.inputs), **speed}


def seeing(network: Chain, suite: Suite) -> Chain:
    """The network; where it adapts its images, from those of the suite's data set."""
    return see(network, suite.dataset.mean, suite.dataset.std)


def fits(network: Chain, suite: Suite) -> None:
    """Raises RequestError if the network takes other images, or tells another number of classes apart."""
    if network.takes is not None and not suite.dataset.port.fits(network.takes):
        raise RequestError(f"the network takes {network.takes}, {suite.name} has {suite.dataset.port}")
    classes = network.gives["classes"] if network.gives is not None else None
    if classes not in (None, len(suite.dataset.classes)):
        raise RequestError(
            f"the network tells {classes} classes apart, {suite.name} has {len(suite.dataset.classes)}; "
            "evaluate on the data that it was trained for"
        )
