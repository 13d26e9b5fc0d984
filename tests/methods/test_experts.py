"""Language models trained, concentrated, pruned and grown by stages."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from modnet import experiment
from modnet.engine.artifacts import load_chain
from modnet.errors import RequestError
from modnet.evaluation.accuracy import measure
from modnet.evaluation.summary import summarise
from modnet.methods.base import Inputs
from modnet.recipe import RecipeError, load_recipe
from modnet.report.tables import results_table
from modnet.store import Store
from modnet.surgery.experts import mixtures, pruned

RECIPE = """
name: words
data:
  one: {name: text-folder, path: %(one)s, length: 16, train_bytes: 4000}
  two: {name: text-folder, path: %(two)s, length: 16, train_bytes: 4000}
  long: {name: text-folder, path: %(two)s, length: 24}
models:
  small: {name: moduleformer, width: 8, attention_hidden: 4, heads: 1, attention_experts: 4, hidden: 8, experts: 4}
defaults: {data: one, batch: 16, optimizer: {name: muon, lr: 0.02, others: {lr: 0.03}}}
stages:
  model: {run: train, model: small, epochs: 3}
  narrow: {run: route, method: concentrate, from: model, weight: 0.1}
  cut: {run: route, method: prune, from: narrow, keep: 0.5}
  more: {run: route, method: grow, from: model, data: two, experts: 2}
  verdict: {run: evaluate, of: [model, cut, more], on: [one, two], throughput: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("words")
    for name, words in (("one", "the cat sat on the mat "), ("two", "int main(void) { return 0; } ")):
        (folder / name).mkdir()
        for i in range(30):
            (folder / name / f"{i}.txt").write_text(words * 20)
    path = folder / "words.yaml"
    path.write_text(RECIPE % {"one": folder / "one", "two": folder / "two"})

    def bring(*overrides: str) -> tuple[Inputs, dict[str, Any]]:
        recipe = load_recipe(path, overrides)
        session = experiment.open_session(recipe, folder / "runs", Console(file=io.StringIO()))
        rows = experiment.bring_up_to_date(session, list(recipe.stages))
        return Inputs(recipe, Store(folder / "runs" / "store"), session.keys, lambda text: None), rows

    return bring


def chain_of(inputs: Inputs, stage: str) -> Any:
    return load_chain(Path(inputs.folder(stage)), "network").eval()


def test_a_model_learns_and_is_told_in_bits(run: Any) -> None:
    inputs, rows = run()
    row = rows["model"]
    assert row["bits_per_byte"] == pytest.approx(row["nll"] / math.log(2))
    assert row["bits_per_byte"] < 7, "better than guessing bytes"
    assert row["active_parameters"] < row["parameters"]
    history = inputs.store.result(inputs.keys["model"])["metrics"]["network"]
    assert history["bits_per_byte"] == pytest.approx(row["val_bits_per_byte"])
    data = inputs.dataset("one")
    assert measure(chain_of(inputs, "model"), data.test, data).nll == pytest.approx(row["nll"])


def test_the_table_tells_what_each_stage_scores_on_each_text(run: Any) -> None:
    _, rows = run()
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(summarise({0: rows})))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for stage in ("model", "cut", "more"):
        for suite in ("one", "two"):
            assert f"{rows[stage]['suites'][suite]['mean']['bits_per_byte']:.4f}" in text


def test_pruning_removes_half_of_the_experts(run: Any) -> None:
    inputs, _ = run()
    parts = mixtures(chain_of(inputs, "cut"))
    assert all(part.count == 2 for part in parts.values())
    facts = inputs.store.result(inputs.keys["cut"])
    data = inputs.dataset("one")
    measured = measure(chain_of(inputs, "cut"), data.val, data).as_dict()
    assert facts["pruned_val"]["bits_per_byte"] == pytest.approx(measured["bits_per_byte"])
    for place, load in facts["load"].items():
        least_kept = min(load[e] for e in facts["kept"][place])
        assert all(least_kept >= load[e] for e in range(4) if e not in facts["kept"][place])


def test_growing_leaves_the_old_experts_as_they_were(run: Any) -> None:
    inputs, _ = run()
    old, new = chain_of(inputs, "model"), chain_of(inputs, "more")
    assert all(part.count == 6 for part in mixtures(new).values())
    back = pruned(new, {place: list(range(4)) for place in mixtures(new)}, rows="drop")
    state = old.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in back.state_dict().items())
    assert 0 <= inputs.store.result(inputs.keys["more"])["new_share"] <= 1


def test_wrong_requests(run: Any) -> None:
    with pytest.raises(RequestError, match="give both windows or images of one size"):
        run("stages.more.data=long")
    with pytest.raises(RecipeError, match="one of the two"):
        run("stages.cut.usage=0.1")
