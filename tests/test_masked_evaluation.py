"""``modnet eval RUN --on tiny-imagenet-r``, from miniature archives to a top-1 that is computed by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from modnet import experiment
from modnet.cli.main import main
from modnet.data.folder import IMAGENET_MOMENTS
from modnet.data.wordnet import wnids
from modnet.recipe import load_recipe
from tests.data import published as made

RECIPE = """
name: masked
data: {tiny: {name: tiny-imagenet, size: 8}}
models: {vit_s: {name: vit, width: 16, heads: 2, depths: [1], patch: 4}}
stages: {net: {run: train, model: vit_s, data: tiny, epochs: 0}}
"""


@pytest.mark.parametrize("name", ["tiny-r", "tiny-imagenet-r"])
def test_a_run_is_measured_among_62_classes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    made.put(tmp_path, {**made.tiny(2), **made.renditions(2)})
    (tmp_path / "r.yaml").write_text(RECIPE)
    quiet = Console(file=io.StringIO())
    experiment.run(load_recipe(tmp_path / "r.yaml"), runs=tmp_path / "runs", console=quiet, device="cpu")
    for file in (tmp_path / "tiny-imagenet-200").rglob("*.JPEG"):
        file.unlink()  # only ImageNet-R is needed from here on
    run = tmp_path / "runs" / "masked" / "seed-0"
    summary = experiment.evaluate_run(run, [name], device="cpu", console=quiet)

    shown = sorted(set(wnids("tiny")) & set(wnids("r")))
    columns = [wnids("tiny").index(wnid) for wnid in shown]
    files = [tmp_path / "imagenet-r" / wnid / f"art_{i}.jpg" for wnid in shown for i in range(2)]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((8, 8))) for file in files])
    mean, std = (np.array(values) for values in IMAGENET_MOMENTS)
    images = torch.from_numpy((pixels / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        chosen = experiment.load(run)(images)[:, columns].argmax(1)
    expected = 100 * float((chosen == torch.arange(62).repeat_interleave(2)).double().mean())
    assert summary["rows"]["net"]["shift_top1"]["mean"] == pytest.approx(expected, abs=1e-9)
    assert summary["suites"]["net"][name]["top1"]["test"]["mean"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0, "a network that never hits would prove nothing"


def test_as_a_user_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODNET_WORKERS", "0")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    made.put(tmp_path, {**made.tiny(2), **made.renditions(1)})
    (tmp_path / "r.yaml").write_text(RECIPE)
    quiet = Console(file=io.StringIO())
    experiment.run(load_recipe(tmp_path / "r.yaml"), runs=tmp_path / "runs", console=quiet, device="cpu")
    run = tmp_path / "runs" / "masked" / "seed-0"
    expected = experiment.evaluate_run(run, ["tiny-r"], device="cpu", console=quiet)["rows"]["net"]["shift_top1"][
        "mean"
    ]
    assert main(["eval", str(run), "--on", "tiny-imagenet-r", "--device", "cpu"]) == 0
    assert f"{expected:.2f}" in capsys.readouterr().out
