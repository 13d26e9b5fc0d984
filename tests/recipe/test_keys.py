"""Stage keys: what changes them and what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modnet.recipe import Recipe, load_recipe, stage_keys
from tests.recipe.conftest import FULL, Read

PRINTS = {"whole": "f", "small": "f", "fashion-mnist": "f"}
NAMES = ["whole", "small", "vit_s", "vit_l", "thin", "verdict", "meta", "modules", "transfer", "imitate", "hinton"]
NAMES += ["baseline"]


def keys(recipe: Recipe, prints: dict[str, str] | None = None) -> dict[str, str]:
    return stage_keys(recipe, PRINTS if prints is None else prints)


def renamed(text: str, old: str, new: str) -> str:
    """A recipe with one name changed everywhere, but not keys such as ``meta:`` inside a stage."""
    text = re.sub(rf"^(  ){old}(:)", rf"\g<1>{new}\2", text, flags=re.M)
    text = re.sub(rf"(: ){old}\b", rf"\g<1>{new}", text)
    return re.sub(rf"(\[|, ){old}(-r)?(?=[,\]])", rf"\g<1>{new}\2", text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(old=st.sampled_from(NAMES), new=st.from_regex(r"[a-z]{3,8}_[0-9]", fullmatch=True))
def test_renaming_keeps_every_key(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "a.yaml").write_text(FULL)
    (tmp_path / "b.yaml").write_text(renamed(FULL, old, new))
    before = keys(load_recipe(tmp_path / "a.yaml"))
    prints = PRINTS | {new: "f"}
    after = keys(load_recipe(tmp_path / "b.yaml"), prints)
    assert {new if name == old else name: key for name, key in before.items()} == after


def differing(a: dict[str, str], b: dict[str, str]) -> set[str]:
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.hinton.tau=3", {"hinton", "verdict"}),
        ("stages.student.epochs=24", {"student", "verdict"}),
        ("stages.imitate.beta=2", {"imitate"}),
        ("stages.transfer.alpha=0.4", {"transfer", "student", "verdict"}),
        ("models.thin.mlp_ratio=2", {"transfer", "student", "imitate", "hinton", "baseline", "verdict"}),
        ("stages.modules.seed=1", {"modules", "teacher", "transfer", "student", "imitate", "hinton", "verdict"}),
        ("data.small.subset_seed=1", {"student", "baseline", "verdict"}),
        ("seed=1", {"transfer", "student", "imitate", "hinton", "baseline", "verdict"}),
        ("stages.verdict.on=[fashion-mnist]", {"verdict"}),
        ("stages.modules.fused=false", set()),
        ("stages.modules.fused=2", set()),
        ("stages.transfer.replay=fp32", set()),
        ("stages.transfer.replay=fp16", {"transfer", "student", "verdict"}),
        ("stages.transfer.data_seed=3", {"transfer", "student", "verdict"}),
        ("stages.meta.checkpoint_every=7", set()),
        ("stages.meta.parallel={experts: 2}", set()),
        ("stages.verdict.throughput=false", {"verdict"}),
        ("name=other", set()),
        ("models.unused={name: vit}", set()),
        ("stages.meta.seed=0", set()),
    ],
)  # fmt: skip
def test_what_a_change_changes(recipe: Read, full: str, override: str, changed: set[str]) -> None:
    before = keys(recipe())
    assert differing(before, keys(recipe(full, override))) == changed


def test_a_fingerprint_changes_the_stages_that_read_the_data(recipe: Read) -> None:
    read = recipe()
    assert differing(keys(read), keys(read, PRINTS | {"small": "g"})) == {"student", "baseline", "verdict"}
    assert differing(keys(read), keys(read, PRINTS | {"fashion-mnist": "g"})) == {"verdict"}


def test_sources_name_every_fingerprint_that_is_asked_for(recipe: Read) -> None:
    assert set(recipe().sources()) == {"whole", "small", "fashion-mnist"}


def test_equal_settings_written_differently_have_equal_keys(recipe: Read, full: str) -> None:
    written = "{name: vit, width: 384, heads: 6, depths: [3, 3, 3, 3], patch: 4, mlp_ratio: 4}"
    models = [f"models.{m}={{name: vit-s, patch: 4}}" for m in ("vit_l", "vit_s")]
    spelled = [f"models.{m}={written}" for m in ("vit_l", "vit_s")]
    assert keys(recipe(full, *models)) == keys(recipe(full, *spelled))
    assert keys(recipe()) == keys(recipe(full, "stages.meta.optimizer={name: muon, lr: 2e-2}"))


def test_two_stages_of_equal_content_share_a_key(recipe: Read, full: str) -> None:
    found = keys(recipe(full, "stages.twin={run: train, model: vit_s, epochs: 2, seed: 0}"))
    assert found["twin"] == found["meta"]


def test_with_seed_equals_the_seed_in_the_file(recipe: Read, full: str) -> None:
    assert keys(recipe().with_seed(3)) == keys(recipe(full, "seed=3")) == keys(recipe(full, seed=3))


def test_pinned_stages_are_those_that_no_seed_of_the_recipe_changes(recipe: Read) -> None:
    read = recipe()
    same = {n for n, k in keys(read).items() if k == keys(read.with_seed(9))[n]}
    assert same == read.pinned() == {"meta", "modules", "teacher"}


def test_a_pinned_stage_on_an_unpinned_input_is_not_pinned(recipe: Read, full: str) -> None:
    assert "student" not in recipe(full, "stages.student.seed=0").pinned()


def test_weights_count_by_content_and_not_by_path(recipe: Read, full: str, tmp_path: Path) -> None:
    def key(file: str, content: str) -> str:
        (tmp_path / file).write_text(content)
        model = f"models.big={{name: timm:vit_tiny_patch16_224, weights: {tmp_path / file}}}"
        return keys(recipe(full, model, "stages.hinton.teacher=big"))["hinton"]

    assert key("a", "one") == key("b", "one") != key("a", "two")


def test_the_home_folder_in_a_path_of_weights_is_read_where_the_recipe_is(
    recipe: Read, full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = "models.big={name: timm:vit_tiny_patch16_224, weights: ~/a}"
    read = recipe(full, model, "stages.hinton.teacher=big")
    assert read.models["big"].weights == str(tmp_path / "a")  # type: ignore[attr-defined]


def test_keys_are_the_same_in_every_process(recipe: Read) -> None:
    found = keys(recipe())
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in found.values())
    assert found == keys(recipe())
