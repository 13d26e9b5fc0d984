"""Routing by confidence between two trained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Pass
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.evaluation.cascade import mean_macs, strong_share
from modnet.evaluation.cost import cost
from modnet.layers.confidence import Cascade
from modnet.methods.confidence import ConfidenceRouting, Verdicts
from modnet.planning import plan
from modnet.recipe import RecipeError, load_recipe

FEW = settings(max_examples=15, deadline=None)

BASE = "stages.weak={run: train, model: small, epochs: 2, optimizer: adamw, seed: 0}"
ROUTED = "stages.routed={run: route, method: confidence, weak: weak, strong: base, lose: 1, optimizer: adamw%s}"


@FEW
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=30), st.floats(0, 100))
def test_the_threshold_asks_least_among_those_that_keep_the_accuracy(
    rows: list[tuple[int, bool, bool]], least: float
) -> None:
    scores, weak, strong = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = Verdicts(scores.float(), weak, strong)
    cut, asked = found.threshold(least)

    def right_and_asked(threshold: float) -> tuple[float, float]:
        hard = found.scores < threshold
        return 100 * float(torch.where(hard, strong, weak).double().mean()), 100 * float(hard.double().mean())

    top1, share = right_and_asked(cut)
    assert share == pytest.approx(asked)
    every = [right_and_asked(float(t)) for t in [*scores.unique(), float("inf")]]
    fitting = [each for each in every if each[0] >= least - 1e-6]
    assert share == pytest.approx(min((s for _, s in fitting), default=100.0))
    assert top1 >= least - 1e-6 or not fitting


def routed_of_unchanged(taught: Any, inputs: Any) -> tuple[Cascade, dict[str, Any], dict[str, float]]:
    """The cascade, its result and metrics, once both networks are what they were and no more than a point is lost."""
    (leaf,) = taught.chain(inputs, "routed").leaves
    assert isinstance(leaf, Cascade)
    for part, stage in ((leaf.weak, "weak"), (leaf.strong, "base")):
        given = taught.chain(inputs, stage).state_dict()
        assert all(torch.equal(t, given[name]) for name, t in part.state_dict().items())
    result = inputs.store.result(inputs.keys["routed"])
    metrics = result["metrics"]["network"]
    assert metrics["top1"] >= result["strong_val_top1"] - 1 - 1e-9
    return leaf, result, metrics


def test_the_gate_alone_learns_and_both_networks_stay(taught: Any) -> None:
    inputs = taught.run(BASE, ROUTED % "", only="routed")
    _, _, metrics = routed_of_unchanged(taught, inputs)
    assert metrics["easy"] == pytest.approx(100 - metrics["strong_share"])


def test_the_table_tells_what_the_large_network_is_asked(taught: Any) -> None:
    verdict = "stages.verdict={run: evaluate, of: [routed, base], on: [all], throughput: false}"
    inputs = taught.run(BASE, ROUTED % "", verdict, only="verdict")
    routed, base = inputs.store.result(inputs.keys["verdict"])["rows"]
    (leaf,) = taught.chain(inputs, "routed").leaves
    data = inputs.dataset("all")
    share = strong_share(leaf, data.test, data)
    assert routed["strong_share"] == pytest.approx(100 * share)
    assert routed["macs"] == pytest.approx(cost(leaf.weak, data.port).macs + share * base["macs"], rel=0.05)
    assert routed["macs_share"] == pytest.approx(100 * mean_macs(leaf, data.port, share) / base["macs"])
    assert "strong_share" not in base
    assert measure(taught.chain(inputs, "routed"), data.test, data).top1 == routed["top1"]


@pytest.mark.parametrize("gate", ["max-probability", "{name: margin}", "entropy"])
def test_a_plain_score_needs_its_threshold_alone(taught: Any, gate: str) -> None:
    inputs = taught.run(BASE, ROUTED % f", gate: {gate}, epochs: 3", only="routed")
    leaf, result, metrics = routed_of_unchanged(taught, inputs)
    assert result["images"] == 0
    assert result["flops"] == {"student": 0, "passes": 0}
    data = inputs.dataset("all")
    assert 100 * strong_share(leaf, data.val, data) == pytest.approx(metrics["strong_share"])


def test_a_network_may_learn_beside_a_plain_score(taught: Any) -> None:
    inputs = taught.run(BASE, ROUTED % ", gate: entropy, learn: weak", only="routed")
    (leaf,) = taught.chain(inputs, "routed").leaves
    given = taught.chain(inputs, "weak").state_dict()
    assert any(not torch.equal(t, given[name]) for name, t in leaf.weak.state_dict().items())


def test_a_stage_that_trains_nothing_is_planned(taught: Any, tmp_path: Path) -> None:
    recipe = load_recipe(taught.recipe_file, [BASE, ROUTED % ", gate: entropy"])
    rows = {row["stage"]: row for row in plan(recipe, runs=tmp_path).stages}
    assert rows["routed"]["flops"] == 0
    assert rows["weak"]["flops"] > 0


@pytest.mark.parametrize("learn", ["weak", "joint"])
def test_what_learns_is_what_was_asked(taught: Any, learn: str) -> None:
    inputs = taught.run(BASE, ROUTED % f", learn: {learn}", only="routed")
    (leaf,) = taught.chain(inputs, "routed").leaves
    for part, stage, learns in ((leaf.weak, "weak", True), (leaf.strong, "base", learn == "joint")):
        given = taught.chain(inputs, stage).state_dict()
        assert any(not torch.equal(t, given[name]) for name, t in part.state_dict().items()) == learns


@pytest.mark.parametrize("loss", ["mowst", "mowst-star"])
def test_asking_has_its_price(taught: Any, loss: str) -> None:
    found, confidence = {}, torch.zeros(1)
    for price in (0.0, 0.5):
        inputs = taught.run(BASE, ROUTED % f", loss: {loss}, price: {price}", only="weak")
        (job,) = ConfidenceRouting(inputs.recipe.stages["routed"], inputs).jobs()
        (leaf,) = job.tracks[0].chain.eval().leaves
        assert isinstance(leaf, Cascade)
        batch = next(iter(job.batches.epoch(0, 0)))
        found[price] = job.objective.eval()(batch, Pass())["network"]
        confidence = leaf.both(batch.x, Pass())[2]
    torch.testing.assert_close(found[0.5] - found[0.0], 0.5 * (1 - confidence).mean(), atol=1e-5, rtol=1e-4)


def test_turns_train_the_small_network_and_then_the_large_one(taught: Any) -> None:
    inputs = taught.run(BASE, ROUTED % ", learn: turns, rounds: 2", only="routed")
    (leaf,) = taught.chain(inputs, "routed").leaves
    for part, stage in ((leaf.weak, "weak"), (leaf.strong, "base")):
        given = taught.chain(inputs, stage).state_dict()
        assert any(not torch.equal(t, given[name]) for name, t in part.state_dict().items())
    method = ConfidenceRouting(inputs.recipe.stages["routed"], inputs)
    jobs = method.jobs()
    assert [job.name for job in jobs] == ["weak0", "strong0", "weak1", "strong1"]
    learning = [
        {name.split(".")[1] for name, p in j.tracks[0].chain.named_parameters() if p.requires_grad} for j in jobs
    ]
    assert learning == [{"weak", "gate"}, {"strong"}] * 2
    jobs[0].objective.train()
    (cascade,) = jobs[0].tracks[0].chain.leaves
    assert isinstance(cascade, Cascade)
    assert not any(m.training for m in cascade.strong.leaves)
    assert all(m.training for m in cascade.weak.leaves)


def test_mixing_asks_both_networks_always(taught: Any) -> None:
    inputs = taught.run(BASE, ROUTED % ", answer: mix, loss: mowst-star, learn: joint", only="routed")
    (leaf,) = taught.chain(inputs, "routed").leaves
    data = inputs.dataset("all")
    assert strong_share(leaf, data.val, data) == 1


def test_wrong_requests(taught: Any) -> None:
    other = "data.two={name: class-subset, of: digits, classes: [0, 1]}"
    with pytest.raises(RequestError, match="tells 10 classes apart"):
        taught.run(BASE, other, ROUTED % ", data: two", only="routed")
    with pytest.raises(RecipeError, match="rounds belong to learn: turns"):
        taught.run(BASE, ROUTED % ", rounds: 2", only="routed")
    with pytest.raises(RecipeError, match="gate margin is read off the probabilities and has no hidden"):
        taught.run(BASE, ROUTED % ", gate: {name: margin, hidden: 4}", only="routed")
    with pytest.raises(RecipeError, match="no routing method is called 'confidance'"):
        taught.run("stages.routed={run: route, method: confidance}", only="base")
