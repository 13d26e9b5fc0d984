"""``modnet import`` and ``export`` as a user types them, weights in a recipe, and a look into a circuit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import modnet
from modnet import experiment
from modnet.cli.main import main
from modnet.engine.artifacts import load_chain
from modnet.recipe import load_recipe

RECIPE = """
name: exchange
data: {digits: {name: digits, per_class: 6}}
models:
  small:   {name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4}
  experts: {name: vmoe, width: 16, heads: 2, depths: [1, 1], patch: 4, experts: 2, top_k: 2}
  circuit: {name: nac, width: 8, signatures: 4, inputs: 3, mediators: 6, outputs: 2, iterations: 1, heads: 2,
            head_width: 4, stem_depths: [1], stem_patch: 2, positions: 4, graph: {steps: 5}}
defaults: {data: digits, batch: 32, optimizer: adamw, epochs: 1}
stages:
  teacher:  {run: train, model: small}
  transfer: {run: distill, student: experts, teacher: teacher, meta: teacher}
  student:  {run: assemble, from: transfer}
  circuit_: {run: train, model: circuit}
"""
VIT = "{name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4}"
VMOE = "{name: vmoe, width: 16, heads: 2, depths: [1, 1], patch: 4, experts: 2}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "r.yaml").write_text(RECIPE)
    quiet = Console(file=io.StringIO())
    experiment.run(load_recipe(folder / "r.yaml"), runs=folder / "runs", console=quiet, device="cpu")
    return folder / "runs" / "exchange" / "seed-0"


def logits(folder: Path, stage: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        return modnet.load(folder, stage)(torch.linspace(0, 1, 128).view(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("stage", "layout", "model"), [("teacher", "deep-incubation", VIT), ("teacher", "timm", VIT),
                                   ("student", "deep-incubation", VMOE)]
)  # fmt: skip
def test_out_and_in_again(run: Path, tmp_path: Path, stage: str, layout: str, model: str) -> None:
    file = tmp_path / ("net.safetensors" if layout == "timm" else "net.pth")
    assert main(["export", str(run), "--stage", stage, "--layout", layout, "--to", str(file)]) == 0
    back = tmp_path / "back"
    assert main(["import", str(file), "--model", model, "--data", "digits", "--to", str(back)]) == 0
    assert torch.equal(logits(back), logits(run, stage))
    assert main(["import", str(file), "--model", model, "--data", "digits", "--to", str(back)]) == 2, "it exists"


def test_students_out_and_in(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "students"
    words = ["--stage", "transfer", "--layout", "m2mkd-students", "--split-experts", "--to", str(files)]
    assert main(["export", str(run), *words]) == 0
    given = [str(files / f"module_{i}.pth") for i in range(2)]
    assert main(["import", *given, "--model", VMOE, "--data", "digits", "--to", str(tmp_path / "back")]) == 0
    before = modnet.load(run, "student")
    stored = load_chain(run / "stages" / "student", "before").state_dict()
    back = modnet.load(tmp_path / "back").state_dict()
    assert back.keys() == before.state_dict().keys()
    assert all(torch.equal(back[name], stored[name]) for name in back), "what assembling them gave"
    capsys.readouterr()
    assert main(["export", str(run), "--layout", "m2mkd-students", "--to", str(tmp_path / "x")]) == 2
    assert "name it with --stage" in capsys.readouterr().err
    assert (
        main(["export", str(run), "--stage", "teacher", "--layout", "m2mkd-students", "--to", str(tmp_path / "x")]) == 2
    )
    assert "stages with modules: transfer" in capsys.readouterr().err


def test_a_published_file_as_weights_of_a_model(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    assert main(["export", str(run), "--stage", "teacher", "--layout", "deep-incubation", "--to", str(file)]) == 0
    text = f"""
name: weighted
data: {{digits: {{name: digits, per_class: 6}}}}
models:
  known:  {{name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4, weights: {file}}}
  fresh:  {{name: vit, width: 16, heads: 2, depths: [1, 1], patch: 4}}
defaults: {{data: digits, batch: 32, optimizer: adamw}}
stages:
  checkpoint: {{run: train, model: known, epochs: 0}}
  pupil:      {{run: distill, method: kd, student: fresh, teacher: known}}
"""
    (tmp_path / "w.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "w.yaml")
    quiet = Console(file=io.StringIO())
    experiment.run(recipe, runs=tmp_path / "runs", console=quiet, device="cpu")
    assert torch.equal(logits(tmp_path / "runs" / "weighted" / "seed-0", "checkpoint"), logits(run, "teacher"))
    other = load_recipe(tmp_path / "w.yaml", [f"models.known.weights={run / 'stages/teacher/network.safetensors'}"])
    experiment.run(other, runs=tmp_path / "runs", console=quiet, device="cpu")
    assert torch.equal(logits(tmp_path / "runs" / "weighted" / "seed-0", "checkpoint"), logits(run, "teacher"))


def test_a_look_into_a_circuit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--of", "circuit_", "--circuit", str(tmp_path / "look"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:2]] == [
        ["100%", "of", "the", "modules"],
        ["75%", "of", "the", "modules"],
    ]
    assert (tmp_path / "look" / "links.png").exists()
    assert main(["eval", str(run), "--of", "teacher", "--circuit", str(tmp_path / "no")]) == 2
    assert "no Neural Attentive Circuit" in capsys.readouterr().err
    assert main(["eval", "smoke/e2e", "--circuit", str(tmp_path / "no")]) == 2
