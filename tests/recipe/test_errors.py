"""All errors at once, each with position, key path, value and what would be right."""

from __future__ import annotations

import pytest

from tests.recipe.conftest import Read, Wrong


def test_all_errors_come_in_one_message_with_their_positions(errors: Wrong) -> None:
    text = """\
name: bad
sed: 3
data:
  full: {name: fashion-mnst}
models:
  vit_s: {name: vit, widht: 64, depths: [1, two]}
defaults: {data: full, batch: "128", label_smoothing: 10%}
stages:
  meta:  {run: train, model: vit_s, epochs: 2.5}
  again: {run: trian, model: vit_s}
  last:  {run: train, model: vit_s, optimizer: {name: adamw, lr: fast}, clip: none, compile: yes}
  eval:  {run: evaluate, of: [mta], on: [fashion-mnist-q]}
"""
    found = errors(text)
    expected = [
        "r.yaml:2:1: sed: 3: there is no such key at the top of a recipe; did you mean 'seed'?",
        "r.yaml:4:16: data.full.name: 'fashion-mnst': no data source is called 'fashion-mnst'; "
        "did you mean 'fashion-mnist'?",
        "r.yaml:6:22: models.vit_s.widht: 64: there is no such key; did you mean 'width' or 'weights'?",
        "r.yaml:6:45: models.vit_s.depths.1: 'two': wants a whole number",
        "r.yaml:7:31: defaults.batch: '128': wants a whole number: take the quotes off",
        "r.yaml:7:55: defaults.label_smoothing: '10%': wants a number "
        "(write 0.1; only lengths such as `warmup` read a percent sign)",
        "r.yaml:9:45: stages.meta.epochs: 2.5: wants a whole number",
        "r.yaml:10:16: stages.again.run: 'trian': no verb is called 'trian'; did you mean 'train'?",
        "r.yaml:11:66: stages.last.optimizer.lr: 'fast': wants a number",
        "r.yaml:11:79: stages.last.clip: 'none': wants a number (nothing is written `null`)",
        "r.yaml:11:94: stages.last.compile: 'yes': wants true or false: write true",
        "r.yaml:12:31: stages.eval.of.0: 'mta': nothing in this recipe has this name; "
        "it wants a stage; did you mean 'meta'?",
    ]
    assert sorted(expected) == sorted(line for line in found if "fashion-mnist-q" not in line)
    assert any(line.startswith("r.yaml:12:42: stages.eval.on.0: 'fashion-mnist-q'") for line in found)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("stages.meta.epochs=-1", "must be at least 0"),
        ("stages.meta.epochs=null", "wants a whole number, not nothing"),
        ("stages.meta.epochs=1e3", "wants a whole number: write 1000"),
        ("stages.meta.epochs=true", "wants a whole number"),
        ("stages.meta.label_smoothing=1", "must be less than 1"),
        ("stages.meta.optimizer.lr=0", "must be more than 0"),
        ("stages.meta.dtype=fp23", "must be 'fp32', 'bf16' or 'auto'"),
        ("stages.meta.optimizer=adamm", "no optimizer is called 'adamm'; did you mean 'adamw'"),
        ("stages.meta.optimizer=3", "wants a name or a mapping with a name"),
        ("stages.meta.schedule.warmup=soon", "a length is a number of steps (100)"),
        ("stages.meta.augment=crop", "wants a list"),
        ("stages.meta.augment=[crop, croop]", "no augmentation is called 'croop'"),
        ("stages.meta.augment.1.are=2", "there is no such key; did you mean 'area'"),
        ("stages.meta.on_mismatch=keep", "wants a mapping, such as {key: value}"),
        ("stages.meta.on_mismatch.heads=keep", "there is no such key; did you mean 'head'"),
        ("stages.meta.on_mismatch.head=kep", "must be 'fresh' or 'keep'"),
        ("stages.transfer.method=m2m", "no distillation method is called 'm2m'; did you mean 'm2mkd'"),
        ("stages.hinton.meta=meta", "there is no such key"),
        ("stages.verdict.of=[]", "wants at least 1"),
        ("stages.student.kd={alpha: 0.5}", "`teacher:` is missing in `kd`"),
        ("stages.student.kd.teacher=vit_s", "this model has no weights"),
        ("stages.meta.run=null", "no verb is called 'None'"),
        ("stages.meta=3", "a stage is a mapping"),
        ("stages.meta={model: vit_s}", "`run:` is missing; the verbs are"),
        ("stages.my stage={run: train, model: vit_s}", "a name is made of letters"),
        ("models.vit_s.heads=7", "width 64 is not a multiple of heads 7"),
        ("models.vit_s={width: 3}", "wants `name:`"),
        ("models=3", "wants a mapping of names"),
        ("data.small.fraction=0.5", "give per_class or fraction, not both"),
        ("data.own={name: image-folder}", "`path:` is missing"),
        ("epochs=3", "write defaults.epochs or stages.NAME.epochs"),
        ("defaults.epoch=3", "no stage of this recipe has such a key; did you mean 'epochs'"),
        ("defaults.lr=3", "no stage of this recipe has such a key"),
        ("defaults.run=train", "no stage of this recipe has such a key"),
        ("seed=one", "wants a whole number"),
        ("name=a/b", "text without slashes"),
    ],
)
def test_one_error(errors: Wrong, full: str, override: str, part: str) -> None:
    found = errors(full, override)
    assert any(part in line for line in found), found
    assert len(found) <= 2, "no errors that only follow from this one"


def test_a_stage_with_a_wrong_key_has_its_references_checked_too(errors: Wrong, full: str) -> None:
    found = errors(full, "stages.hinton.epochs=x", "stages.hinton.teacher=techer", "stages.hinton.foo=1")
    assert any("stages.hinton.teacher: 'techer'" in line and "'teacher'" in line for line in found)
    assert len(found) == 3


def test_an_error_in_a_default_is_told_once_and_where_the_default_stands(errors: Wrong, full: str) -> None:
    assert errors(full.replace("batch: 128", "batch: 0")) == ["r.yaml:12:10: defaults.batch: 0: must be more than 0"]


def test_a_default_that_every_stage_overrides_is_still_checked(errors: Wrong) -> None:
    text = """\
data: {d: {name: digits}}
models: {m: {name: vit, patch: 2}}
defaults: {epochs: many}
stages: {a: {run: train, data: d, model: m, epochs: 1}}
"""
    assert errors(text) == ["r.yaml:3:20: defaults.epochs: 'many': wants a whole number"]


def test_a_default_of_a_verb_that_the_recipe_does_not_use_says_so(errors: Wrong) -> None:
    text = """\
data: {d: {name: digits}}
models: {m: {name: vit, patch: 2}}
defaults: {data: d, meta: x}
stages: {a: {run: train, model: m}}
"""
    (line,) = errors(text)
    assert "it belongs to 'incubate', of which this recipe has no stage" in line


def test_names_are_unique_over_all_sections(errors: Wrong, full: str) -> None:
    found = errors(full.replace("thin:", "meta:").replace("thin", "meta"))
    taken = "r.yaml:18:3: stages.meta: this name is taken by models.meta (r.yaml:9:3)"
    assert any(line.startswith(taken) for line in found)


def test_what_could_not_be_read_is_one_error_and_none_in_the_stages_that_name_it(errors: Wrong, full: str) -> None:
    assert len(errors(full, "models.vit_l.widht=3")) == 1
    assert len(errors(full, "data.whole.nam=3")) == 1
    assert len(errors(full, "data.small.nam=3")) == 1, "small-r is a suite of it"


def test_a_recipe_without_stages(errors: Wrong) -> None:
    assert "a recipe needs at least one stage" in errors("name: x\n")[0]


def test_defaults_fill_only_what_a_verb_has(recipe: Read) -> None:
    stages = recipe().stages
    assert stages["verdict"].batch == 512, "an evaluation's batch is no training batch"  # type: ignore[attr-defined]
    assert stages["meta"].batch == 128  # type: ignore[attr-defined]
    assert stages["student"].data == "small"  # type: ignore[attr-defined]


def test_an_optimizer_without_a_name_changes_the_shared_one(recipe: Read, full: str) -> None:
    stages = recipe(full, "stages.meta.optimizer.momentum=0.5", "stages.hinton.optimizer=sgd").stages
    optimizer = stages["meta"].optimizer  # type: ignore[attr-defined]
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("muon", 0.02, 0.5)
    other = stages["hinton"].optimizer  # type: ignore[attr-defined]
    assert other.lr == 0.1, "another optimizer keeps its own defaults"


def test_a_nameless_mapping_without_a_shared_one_changes_the_default(recipe: Read, full: str) -> None:
    text = full.replace("  schedule: {name: cosine, warmup: 10%}\n", "")
    stage = recipe(text, "stages.meta.schedule={floor: 0.1}").stages["meta"]
    assert (stage.schedule.name, stage.schedule.floor) == ("cosine", 0.1)  # type: ignore[attr-defined]


def test_bare_names_and_mappings_in_a_list(recipe: Read) -> None:
    crop, erase = recipe().stages["meta"].augment  # type: ignore[attr-defined]
    assert (crop.name, crop.pad, erase.p) == ("crop", 2, 0.1)


def test_presets_are_defaults_that_a_recipe_may_change(recipe: Read, full: str) -> None:
    text = full.replace("{name: vit, width: 64, depths: [2, 2, 2, 2]}", "vit-h")
    meta = "models.vit_s={name: vit-h, depths: [1, 1, 1, 1], patch: 4}"
    other = ["models.thin.patch=4", "models.vit_l={name: vit-h, patch: 4}"]
    model = recipe(text, meta, *other).models["vit_s"]
    assert (model.width, model.qkv_bias, model.depths) == (1280, False, (1, 1, 1, 1))  # type: ignore[attr-defined]
