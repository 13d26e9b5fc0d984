"""The papers' recipes: published settings, shared stages, and what a smoke run makes of data that is not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from modnet.recipe import Recipe, load_recipe, shipped_recipes, stage_keys
from modnet.recipe.stages import Assemble, Evaluate, Incubate, M2mkd, Train

PRINTS = dict.fromkeys(["full", "tiny", "new", "imagenet", "tiny-imagenet", "full-r", "tiny-r"], "x")
GRAPHS = ("scale-free", "planted", "ring", "erdos")


def keys(recipe: Recipe) -> dict[str, str]:
    return stage_keys(recipe, PRINTS)


@pytest.mark.parametrize(("letter", "depth", "drop"), [("b", 12, 0.1), ("l", 24, 0.5), ("h", 32, 0.6)])
def test_deep_incubation(letter: str, depth: int, drop: float) -> None:
    recipe = load_recipe(f"imagenet/deep-incubation-vit-{letter}")
    assert sum(recipe.models["target"].depths) == depth  # type: ignore[attr-defined]
    meta, modules, network = (recipe.stages[name] for name in ("meta_network", "modules", "network"))
    assert isinstance(meta, Train)
    assert isinstance(modules, Incubate)
    assert isinstance(network, Assemble)
    assert (meta.epochs, modules.epochs, network.epochs) == (300, 100, 100)
    assert (meta.drop_path, modules.drop_path, network.drop_path) == (0.0, 0.1, drop)
    assert (meta.clip, modules.clip, network.clip) == (None, None, 1.0)
    for stage, warmup in ((meta, 20), (modules, 20), (network, 0)):
        assert (stage.batch, stage.repeats, stage.label_smoothing) == (2048, 3, 0.1)
        assert stage.optimizer.lr == 5e-4 * 2048 / 512  # type: ignore[attr-defined]
        shape = stage.schedule
        assert (shape.warmup_epochs, shape.min_lr) == (warmup, 1e-5)  # type: ignore[attr-defined]
        assert [a.name for a in stage.augment] == [  # type: ignore[attr-defined]
            "resized-crop", "flip", "randaugment", "erase", "mixup-cutmix"
        ]  # fmt: skip


def test_m2mkd() -> None:
    recipe = load_recipe("imagenet/m2mkd-vmoe-b")
    transfer, student = recipe.stages["transfer"], recipe.stages["student"]
    assert isinstance(transfer, M2mkd)
    assert isinstance(student, Assemble)
    assert (transfer.alpha, transfer.tau, transfer.kd_norm, transfer.stitch) == (0.5, 1.0, "numel", "ln-linear")
    assert (student.batch, student.optimizer.lr, student.clip) == (1024, 1e-3, 1.0)  # type: ignore[attr-defined]
    nac = load_recipe("imagenet/m2mkd-nac").models
    assert sum(nac["huge"].depths) == 32  # type: ignore[attr-defined]
    assert len(nac["huge"].depths) == len(nac["meta"].depths) == nac["circuit"].modules == 10  # type: ignore[attr-defined]


@pytest.mark.parametrize("graph", GRAPHS)
def test_circuits_on_tiny_imagenet(graph: str) -> None:
    alone, taught = load_recipe(f"tiny-imagenet/nac-e2e-{graph}"), load_recipe(f"tiny-imagenet/nac-m2mkd-{graph}")
    network, student, baseline = alone.stages["network"], taught.stages["student"], taught.stages["baseline"]
    for stage in (network, student, baseline):
        assert isinstance(stage, Train | Assemble)
        assert (stage.epochs, stage.batch, stage.clip) == (400, 1024, None)
        assert stage.optimizer.lr == 1.2e-3 * 1024 / 512  # type: ignore[attr-defined]
        assert stage.optimizer.weight_decay == 0.075  # type: ignore[attr-defined]
        assert stage.schedule.min_lr == pytest.approx(4e-5 * 2)  # type: ignore[attr-defined]
    assert alone.models["circuit"] == taught.models["circuit"]
    assert keys(alone)["network"] == keys(taught)["baseline"], "one training serves both recipes"


def test_stages_before_the_graph_are_shared() -> None:
    found = [keys(load_recipe(f"tiny-imagenet/nac-m2mkd-{graph}")) for graph in GRAPHS]
    for name in ("meta_network", "parts", "teacher", "transfer"):
        assert len({each[name] for each in found}) == 1, name
    assert len({each["student"] for each in found}) == 4
    for student, name in (("vmoe-b", "cub"), ("vmoe-b", "tiny-imagenet"), ("nac", "cifar-100")):
        whole, few = keys(load_recipe(f"imagenet/m2mkd-{student}")), keys(load_recipe(f"few-shot/{name}"))
        assert all(few[stage] == whole[stage] for stage in whole if stage != "verdict")


def test_episodes_are_the_papers() -> None:
    for name, published in (("cub", (5, 100, 2e-3)), ("tiny-imagenet", (5, 100, 2e-3)), ("cifar-100", (1, 500, 3e-4))):
        verdict = load_recipe(f"few-shot/{name}").stages["verdict"]
        assert isinstance(verdict, Evaluate)
        few = verdict.few_shot
        assert few is not None
        assert (few.ways, few.tune, few.quirk_overlap) == (8, "head", False)
        assert (few.shots, few.epochs, few.lr) == published


@pytest.mark.parametrize("name", sorted(n for n in shipped_recipes() if n.split("/")[0] in ("imagenet", "eval")))
def test_a_smoke_run_says_that_pictures_are_drawn(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    recipe = load_recipe(name, smoke=True)
    (source,) = recipe.data.values()
    assert source.synthetic  # type: ignore[attr-defined]
    assert f"{source.name} is not at hand: synthetic pictures" in recipe.reductions[0]
    assert source.size == load_recipe(name).data[next(iter(recipe.data))].size  # type: ignore[attr-defined]
    (tmp_path / source.name).mkdir()
    at_hand = load_recipe(name, smoke=True)
    (source,) = at_hand.data.values()
    assert not source.synthetic  # type: ignore[attr-defined]
    assert source.per_class == 4
    assert not any("not at hand" in line for line in at_hand.reductions)
