"""``meta: {from: teacher}``: what it expands into, and where its errors stand."""

from __future__ import annotations

import pytest

from modnet.recipe import stage_keys
from modnet.recipe.stages import Align, Incubate, M2mkd
from tests.recipe.conftest import Read, Wrong

TEXT = """\
name: r
data: {all: {name: digits}}
models:
  large: {name: vit, width: 32, depths: [2, 3], patch: 2, pool: mean}
  small: {name: vit, width: 16, depths: [1, 1], patch: 2, pool: mean}
  twin:  {name: vit, width: 32, depths: [1, 1], patch: 2, pool: mean}
defaults: {data: all, batch: 32}
stages:
  teacher:  {run: train, model: large}
  transfer:
    run: distill
    student: small
    teacher: teacher
    meta: {from: teacher, epochs: 3, seed: 5}
  student:  {run: assemble, from: transfer}
"""
SHORT = "{from: teacher, epochs: 3, seed: 5}"


def keys(read: Read, text: str, *overrides: str) -> dict[str, str]:
    return stage_keys(read(text, *overrides), {"all": "f"})


def test_it_becomes_a_stage_before_the_one_that_names_it(recipe: Read) -> None:
    read = recipe(TEXT)
    assert list(read.stages) == ["teacher", "transfer_meta", "transfer", "student"]
    meta, transfer = read.stages["transfer_meta"], read.stages["transfer"]
    assert isinstance(meta, Align)
    assert isinstance(transfer, M2mkd)
    assert (meta.teacher, meta.epochs, meta.seed, meta.batch, transfer.meta) == ("teacher", 3, 5, 32, "transfer_meta")
    assert read.models[meta.student] == read.models["twin"], "the teacher's model with one block a module"


@pytest.mark.parametrize("model", ["", "model: twin, "])
def test_the_written_out_stage_has_the_same_key(recipe: Read, model: str) -> None:
    short = keys(recipe, TEXT.replace("{from: teacher,", f"{{from: teacher, {model}"))
    out = "  aligned: {run: distill, method: align, student: twin, teacher: teacher, epochs: 3, seed: 5}\n"
    long = keys(recipe, TEXT.replace("  transfer:\n", out + "  transfer:\n").replace(SHORT, "aligned"))
    assert long.pop("aligned") == short.pop("transfer_meta")
    assert long == short


def test_a_resolved_recipe_reads_back_to_the_same_keys(recipe: Read) -> None:
    read = recipe(TEXT)
    assert keys(recipe, read.to_yaml()) == stage_keys(read, {"all": "f"})


def test_incubation_may_use_it_and_a_teacher_that_was_assembled(recipe: Read) -> None:
    text = TEXT + "  again: {run: incubate, model: large, meta: {from: second}}\n"
    text += "  second: {run: assemble, from: modules}\n  modules: {run: incubate, model: large, meta: transfer_meta}\n"
    read = recipe(text)
    assert isinstance(read.stages["again"], Incubate)
    assert read.models["again_meta_model"] == read.models["twin"]


def test_overrides_reach_the_stage_by_both_names(recipe: Read) -> None:
    meta = recipe(TEXT, "stages.transfer.meta.mix=0.25", "stages.transfer_meta.epochs=7").stages["transfer_meta"]
    assert isinstance(meta, Align)
    assert (meta.mix, meta.epochs) == (0.25, 7)


@pytest.mark.parametrize(
    ("short", "lines"),
    [
        ("{from: teacher, mixx: 1}",
         ["14:27: stages.transfer.meta.mixx: 1: there is no such key; did you mean 'mix'?"]),
        ("{epochs: 3}", ["14:5: stages.transfer.meta: `from:` is missing: the stage, or model with weights, that the "
                         "meta network is aligned with"]),
        ("{from: techer}", ["14:18: stages.transfer.meta.from: 'techer': nothing in this recipe has this name; it "
                            "wants a stage or a model; did you mean 'teacher'?"]),
        ("{from: teacher, epochs: x}", ["14:35: stages.transfer.meta.epochs: 'x': wants a whole number"]),
        ("{from: teacher, student: small}",
         ["14:27: stages.transfer.meta.student: 'small': is no key of the short form `meta: {from: TEACHER, …}`; "
          "write `model:`"]),
        ("{from: teacher, model: smal}", ["14:34: stages.transfer.meta.model: 'smal': nothing in this recipe has this "
                                         "name; it wants a model; did you mean 'small'?"]),
    ],
)  # fmt: skip
def test_errors_stand_where_the_short_form_was_written(errors: Wrong, short: str, lines: list[str]) -> None:
    assert errors(TEXT.replace(SHORT, short)) == [f"r.yaml:{line}" for line in lines]


def test_a_meta_of_another_width_than_the_teacher(errors: Wrong) -> None:
    found = errors(TEXT.replace("from: teacher,", "from: teacher, model: small,"))
    assert any("14:34: stages.transfer.meta.model: 'small': widths must be equal" in line for line in found)


def test_a_teacher_without_a_smaller_twin_asks_for_the_model(errors: Wrong) -> None:
    found = errors(
        TEXT.replace("from: teacher,", "from: big,"), "models.big={name: timm:vit_tiny_patch16_224, pretrained: true}"
    )
    start = "r.yaml:14:11: stages.transfer.meta: needs `model:` as well: timm:vit_tiny_patch16_224 has no smaller twin"
    assert any(line.startswith(start) for line in found)


def test_a_taken_name(errors: Wrong) -> None:
    found = errors(TEXT + "  transfer_meta: {run: train, model: twin}\n")
    assert found == [
        "r.yaml:14:11: stages.transfer.meta: this becomes a stage called transfer_meta, but that name is taken "
        "(r.yaml:16:3); rename the other stage"
    ]


def test_other_verbs_have_no_meta(errors: Wrong) -> None:
    (line,) = errors(TEXT.replace("model: large}\n  transfer", "model: large, meta: {from: x}}\n  transfer"))
    assert line.startswith("r.yaml:9:40: stages.teacher.meta: {from: 'x'}: there is no such key")
