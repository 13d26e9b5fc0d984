"""The timm adapter gives timm's own numbers, and says clearly what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from modnet.chain import Chain, Pass, Port, describe, parameter_count, rebuild
from modnet.errors import RequestError
from modnet.layers.adapters import InputAdapter, see
from modnet.models.timm import IMAGENET, load_timm, moments, timm_chain
from modnet.randomness import Key
from modnet.recipe.models import Timm
from modnet.surgery.cutting import near_equal

TINY = "vit_tiny_patch16_224"


def build(name: str = TINY, size: int = 32, channels: int = 3, classes: int = 5, **values: Any) -> Chain:
    params = Timm(name=f"timm:{name}", **values)
    return timm_chain(params, Port.of("image", channels=channels, size=size), classes)


def images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return Key.of(0).normal(torch.arange(2), channels * size * size).view(2, channels, size, size)


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        (TINY, 32, 3),
        ("deit_tiny_patch16_224", 64, 1),
        ("deit3_small_patch16_224", 32, 3),  # layer scale, positions without the class token
        ("vit_little_patch16_reg1_gap_256", 32, 3),  # register token, mean pooling, no class token
    ],
)
def test_logits_are_timms(name: str, size: int, channels: int) -> None:
    with Key.of(1).forked():
        model = timm.create_model(name, img_size=size, in_chans=channels, num_classes=5).eval()
    chain = build(name, size, channels).eval()
    load_timm(chain, model.state_dict())
    x = images(channels, size)
    with torch.no_grad():
        torch.testing.assert_close(chain(x), model(x), atol=1e-6, rtol=1e-6)
        again = rebuild(describe(chain)).eval()
        again.load_state_dict(chain.state_dict())
        assert torch.equal(again(x), chain(x))
    assert parameter_count(chain) == sum(p.numel() for p in model.parameters())


def test_a_chain_is_drawn_from_the_key_alone() -> None:
    states: list[dict[str, torch.Tensor]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        with Key.of(seed).forked():
            states.append(build().state_dict())
    same, other = states[1:]
    assert all(torch.equal(states[0][k], same[k]) for k in same)
    assert any(not torch.equal(states[0][k], other[k]) for k in other)


def test_modules_ports_matrices_and_drop_path() -> None:
    chain = build(depths=(2, 10), drop_path=0.11)
    assert chain.depths == (2, 10)
    assert build().depths == (3, 3, 3, 3)
    assert str(chain[1].takes) == "tokens(grid=(2, 2), prefix=1, width=192)"
    block = chain.leaves[12]
    assert block.matrices()["attn.qkv.weight"] == 3
    ids = torch.arange(16)
    x = Key.of(0).normal(ids, 5 * 192).view(16, 5, 192)
    dropped = block.train()(x, Pass(Key.of(0), ids))
    assert not torch.equal(dropped, block.eval()(x, Pass(Key.of(0), ids)))
    assert torch.equal(dropped, block.train()(x, Pass(Key.of(0), ids)))


def test_near_equal_depths() -> None:
    assert near_equal(14, 4) == (4, 4, 3, 3)
    assert near_equal(3, 4) == (1, 1, 1)


def test_a_local_file_gives_the_weights_and_fits_other_images(tmp_path: Path) -> None:
    with Key.of(1).forked():
        model = timm.create_model(TINY, img_size=32, num_classes=7).eval()
    path = tmp_path / "w.safetensors"
    save_file(model.state_dict(), path)
    same = build(classes=7, weights=str(path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(same(images()), model(images()))
    larger = build(size=64, channels=1, classes=2, weights=str(path))
    state, own = model.state_dict(), larger.state_dict()
    assert torch.equal(own["3.mlp.fc1.weight"], state["blocks.2.mlp.fc1.weight"])
    assert own["0.pos_embed"].shape == (1, 17, 192)
    assert own["13.head.weight"].shape == (2, 192)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"head.weight": torch.zeros(5, 9)}, path)
    with pytest.raises(RequestError, match="do not fit timm:vit_tiny"):
        build(weights=str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="cannot be read"):
        build(weights=str(path))
    with pytest.raises(RequestError, match=r"no \.safetensors file that exists"):
        build(weights=str(tmp_path / "absent.safetensors"))


def test_unreachable_weights_say_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=r"timm:vit_tiny_patch16_224 .*weights=PATH\.safetensors"):
        build(pretrained=True)


def test_another_size_and_normalisation_put_an_adapter_in_front() -> None:
    plain = build(size=32, channels=3)
    adapted = timm_chain(
        Timm(name=f"timm:{TINY}", size=32, channels=3, normalise="imagenet", resize="bicubic"),
        Port.of("image", channels=1, size=20),
        5,
    )
    adapter = adapted.leaves[0]
    assert isinstance(adapter, InputAdapter)
    assert adapter.arguments["filter"] == "bicubic"
    assert adapter.arguments["gives_mean"] == IMAGENET[0]
    assert adapted.depths == plain.depths
    assert [len(module.leaves) for module in adapted] == [5, 3, 3, 4]
    inner = Chain(adapted.leaves[1:])
    inner.load_state_dict(plain.state_dict())
    see(adapted, (0.4,), (0.2,))
    x = images(1, 20)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(x), plain.eval()(adapter(x, Pass())))


@pytest.mark.parametrize(
    ("values", "channels", "expected"),
    [
        ({}, 3, (None, None)),
        ({"normalise": "imagenet"}, 3, IMAGENET),
        ({"normalise": "own"}, 3, ((0.5,) * 3, (0.5,) * 3)),
        ({"normalise": "own"}, 1, ((0.5,), (0.5,))),
    ],
)
def test_what_a_network_wants_its_images_normalised_by(values: dict[str, Any], channels: int, expected: Any) -> None:
    assert moments(Timm(name=f"timm:{TINY}", **values), channels) == expected


def test_a_normalisation_is_known_of_three_channels() -> None:
    with pytest.raises(RequestError, match="known of 3 channels, not of 4"):
        build(channels=4, normalise="imagenet")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vit_tini_patch16_224", {}, "did you mean timm:vit_tiny_patch16_224"),
        ("deit_tiny_distilled_patch16_224", {}, "more than a stem, blocks and a head"),
        ("resnetv2_50", {}, "no Vision Transformer, ResNet, EfficientNet or ConvNeXt"),
        (TINY, {"size": 28}, "patches of 16 pixels"),
        (TINY, {"depths": (3, 3)}, r"has 12; for example \[6, 6\]"),
    ],
)
def test_what_cannot_be_a_chain_is_said(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(name, **values)
