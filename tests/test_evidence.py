"""The budgets of the evidence recipes: rows that claim an equal budget cost the same, or favour the comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from modnet.chain import Chain, Port
from modnet.data import port_of
from modnet.evaluation.cost import training_flops
from modnet.recipe import Recipe, load_recipe
from modnet.recipe.stages import Assemble, Distill, Evaluate, Train
from modnet.registry import MODELS
from modnet.surgery import assemble, fold_stitches, stitched

METHODS = ("e2e", "hinton", "m2mkd", "features")
NAMES = ("fashion-mnist/evidence/b-1000", "fashion-mnist/evidence/b-3000")


class Prices:
    """FLOPs of one image, in each kind of stage that a recipe's students go through, counted from parts."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.port, self.classes = port_of(recipe.data["small"])
        self.student, self.teacher, self.meta = (self.built(name) for name in ("vit_s", "vit_l", "meta_vit"))
        self.learners = [stitched(m, self.teacher, i, "linear") for i, m in enumerate(self.student)]
        self.folded = fold_stitches(assemble(self.learners))

    def built(self, name: str) -> Chain:
        params = self.recipe.models[name]
        chain: Chain = MODELS.get(str(params.name)).resolve()(params, self.port, self.classes)  # type: ignore[attr-defined]
        return chain

    def of(self, chain: Chain, frozen: bool = False, back: bool = False) -> float:
        if not chain:
            return 0.0
        port: Port = chain.takes or self.port
        return training_flops(chain.frozen() if frozen else chain, port, input_grad=back)

    def places(self) -> Iterator[tuple[float, float, float]]:
        """Of each module: learning it; the teacher's module and tail in the meta, and the tail; the front."""
        for i, learner in enumerate(self.learners):
            tail = self.meta[i + 1 :]
            beside = self.of(self.teacher[i] + tail, frozen=True) + self.of(tail, frozen=True, back=True)
            yield self.of(learner), beside, self.of(self.meta[:i], frozen=True)

    def modules(self, method: str) -> tuple[float, float]:
        """All modules in one process, and the dearest alone."""
        if method == "features":
            fronts = [self.of(self.teacher[: i + 1], frozen=True) for i in range(len(self.learners))]
            own = [self.of(learner) for learner in self.learners]
            return sum(own) + fronts[-1], max(a + b for a, b in zip(own, fronts, strict=True))
        rows = list(self.places())
        return sum(a + b for a, b, _ in rows) + rows[-1][2], max(map(sum, rows))

    def total(self, name: str) -> tuple[float, float]:
        """FLOPs of a row an image: in one process, and on the longest path with a worker for each module."""
        stage = self.recipe.stages[name]
        teacher = self.of(self.teacher, frozen=True)
        if isinstance(stage, Train):
            both = self.of(self.student) * stage.epochs
            return both, both
        if isinstance(stage, Assemble):
            source = self.recipe.stages[stage.from_]
            assert isinstance(source, Distill)
            together, alone = self.modules(source.method)
            whole = (self.of(self.folded) + teacher) * stage.epochs
            return together * source.epochs + whole, alone * source.epochs + whole
        assert isinstance(stage, Distill)
        both = (self.of(self.student) + teacher) * stage.epochs
        return both, both


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_one_budget_cost_the_same(name: str) -> None:
    recipe = load_recipe(name)
    prices = Prices(recipe)
    cost = {f"{m}_{b}": prices.total(f"{m}_{b}") for m in METHODS for b in ("epochs", "compute", "workers")}
    for budget, which in (("compute", 0), ("workers", 1)):
        target = cost[f"features_{budget}"][which]
        for method in ("e2e", "hinton"):
            assert 1 <= cost[f"{method}_{budget}"][which] / target < 1.05
        assert 0.97 <= cost[f"m2mkd_{budget}"][which] / target <= 1.001


@pytest.mark.parametrize("name", NAMES)
def test_epochs_are_equal_and_the_teacher_is_shared(name: str) -> None:
    recipe = load_recipe(name)
    totals = []
    for method in METHODS:
        stage = recipe.stages[f"{method}_epochs"]
        assert not isinstance(stage, Assemble) or stage.epochs
        earlier = recipe.stages[stage.from_].epochs if isinstance(stage, Assemble) else 0  # type: ignore[attr-defined]
        totals.append(earlier + stage.epochs)  # type: ignore[attr-defined]
    assert all(a == b for a, b in pairwise(totals))
    assert {"teacher", "meta"} <= recipe.pinned()
    assert all(recipe.stages[f"{m}_epochs"].data == "small" for m in METHODS)  # type: ignore[attr-defined]


def epochs_of(recipe: Recipe, name: str) -> int:
    """Epochs of a stage and of those of the same network that it goes on from."""
    stage = recipe.stages[name]
    assert isinstance(stage, Train | Assemble)
    return stage.epochs + (epochs_of(recipe, stage.from_) if isinstance(stage, Train) and stage.from_ else 0)


def test_on_the_large_set_whole_students_cost_what_all_modules_cost() -> None:
    recipe = load_recipe("fashion-mnist/evidence/a")
    prices, stages = Prices(recipe), recipe.stages
    modules, alone = prices.modules("m2mkd")[0], prices.of(prices.student)
    taught = alone + prices.of(prices.teacher, frozen=True)
    spent = modules * stages["m2mkd_large"].epochs  # type: ignore[attr-defined]
    for name, each in (("e2e_large", alone), ("hinton_large", taught)):
        assert 1 <= each * stages[name].epochs / spent < 1.05  # type: ignore[attr-defined]
    rows = ("e2e_epochs", "m2mkd_epochs", "alpha0_epochs", "e2e_compute", "hinton_compute", "m2mkd_compute")
    assert len({stages[name].epochs for name in rows}) == 1  # type: ignore[attr-defined]
    assert stages["m2mkd_25"].epochs == stages["e2e_25"].epochs  # type: ignore[attr-defined]
    assert {stages[name].data for name in (*rows, "m2mkd_25", "e2e_25")} == {"small"}  # type: ignore[attr-defined]


def test_incubation_costs_at_most_57_percent_of_the_longest_schedule_and_what_the_short_one_costs() -> None:
    recipe = load_recipe("fashion-mnist/evidence/c")
    port, classes = port_of(recipe.data["small"])
    meta, deep = (MODELS.get("vit").resolve()(recipe.models[n], port, classes) for n in ("meta_vit", "vit_deep"))
    whole, small = training_flops(deep, port), training_flops(meta, port)
    modules = sum(training_flops(m, m.takes or port) for m in deep) + training_flops(meta[:-1].frozen(), port)
    tails = [meta[i + 1 :] for i in range(len(meta) - 1)]
    modules += sum(training_flops(tail.frozen(), tail.takes, input_grad=True) for tail in tails)
    verdict = recipe.stages["verdict"]
    assert isinstance(verdict, Evaluate)
    schedules = {name: epochs_of(recipe, name) for name in verdict.of if name.startswith("e2e_")}
    assert len(schedules) >= 4
    for joined, parts in (("incubated_compute", "modules"), ("unhinted_compute", "unhinted")):
        cost = small * recipe.stages["meta"].epochs + modules * recipe.stages[parts].epochs  # type: ignore[attr-defined]
        cost += whole * epochs_of(recipe, joined)
        assert cost <= 0.57 * whole * max(schedules.values())
        assert 0.98 < cost / (whole * schedules["e2e_compute"]) <= 1


def test_with_an_off_the_shelf_teacher_rows_of_compute_cost_the_same() -> None:
    recipe = load_recipe("fashion-mnist/pretrained-teacher")
    port, classes = port_of(recipe.data["small"])
    drawn = recipe.models["lite0"].changed(weights=None)
    teacher = MODELS.get("efficientnet-lite0").resolve()(drawn, port, classes)
    student = MODELS.get("vit").resolve()(recipe.models["vit_s"], port, classes)
    taught, alone = training_flops(teacher.frozen(), port), training_flops(student, port)
    learners = [stitched(module, teacher, i, "linear") for i, module in enumerate(student)]
    modules = taught + sum(training_flops(learner, learner.takes or port) for learner in learners)
    folded = taught + training_flops(fold_stitches(assemble(learners)), port)
    epochs = {name: stage.epochs for name, stage in recipe.stages.items() if hasattr(stage, "epochs")}
    spent = modules * epochs["transfer"] + folded * epochs["features_compute"]
    assert 1 <= (taught + alone) * epochs["hinton_compute"] / spent < 1.05
    assert 1 <= alone * epochs["e2e_compute"] / spent < 1.05
    assert epochs["e2e_epochs"] == epochs["transfer"] + epochs["features_compute"]
