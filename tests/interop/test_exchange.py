"""Published checkpoints in every layout: what is written is read back, and what does not fit is named and refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.cli.imports import read_params
from modnet.errors import RequestError
from modnet.interop import nac as nac_files
from modnet.interop.exchange import Wanted, exported, exported_modules, imported
from modnet.interop.files import read_torch, write_state, write_torch
from modnet.interop.keys import published_state, split_experts, stacked_experts
from modnet.interop.published import load, read
from modnet.models.nac_students import student
from modnet.randomness import Key
from modnet.registry import DATA, MODELS
from modnet.surgery import stitched

IMAGES = Port.of("image", channels=3, size=16)
VIT = {"name": "vit", "width": 16, "heads": 2, "depths": [1, 2], "patch": 4}
VMOE = {**VIT, "name": "vmoe", "experts": 3, "placement": [1, 2]}
NAC = {"name": "nac", "width": 16, "signatures": 4, "inputs": 3, "mediators": 6, "outputs": 2, "iterations": 2,
       "heads": 2, "head_width": 8, "stem_depths": [1, 1], "stem_patch": 4, "positions": 4,
       "graph": {"name": "none"}}  # fmt: skip


def network(values: Mapping[str, Any], seed: int, port: Port = IMAGES, classes: int = 5) -> Chain:
    params: Any = MODELS.read(values)
    with Key.of(seed, "network").forked():
        chain: Chain = MODELS.get(params.name).resolve()(params, port, classes)
        for tensor in chain.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
    return chain.eval()


def wanted(values: Mapping[str, Any], **more: Any) -> Wanted:
    return Wanted(MODELS.read(values), IMAGES, 5, **more)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("values", "layout", "suffix"),
    [(VIT, "deep-incubation", ".pth"), (VMOE, "deep-incubation", ".pth"), (VIT, "timm", ".safetensors"),
     (VMOE, "timm", ".safetensors"), (NAC, "nac", ".pth")],
)  # fmt: skip
def test_a_whole_network_comes_back(
    values: dict[str, Any], layout: str, suffix: str, split: bool, tmp_path: Path
) -> None:
    own = network(values, 1)
    (file,) = exported(own, layout, tmp_path / f"network{suffix}", split=split)
    asked = wanted(values)
    back = imported([file], asked)
    assert same(back.state_dict(), own.state_dict())
    assert layout in asked.said[0]
    assert "missing" not in asked.said[0]
    fresh = network(values, 2)
    load(fresh, file)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh(x), own(x))


@pytest.mark.parametrize("values", [VIT, VMOE])
def test_a_transformers_file_tells_its_sizes(values: dict[str, Any], tmp_path: Path) -> None:
    own = network({**values, "width": 64, "heads": 1}, 1)
    (file,) = exported(own, "deep-incubation", tmp_path / "n.pth")
    back = imported([file], Wanted())
    assert (back.takes, back.gives, back.depths) == (own.takes, own.gives, own.depths)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(back.eval()(x), own(x))


def test_positions_of_another_resolution_are_resized(tmp_path: Path) -> None:
    large = Port.of("image", channels=3, size=24)
    own = network(VIT, 1)
    (file,) = exported(own, "deep-incubation", tmp_path / "n.pth")
    asked = Wanted(MODELS.read(VIT), large, 5)
    back = imported([file], asked)
    assert "resized: pos_embed from 4 x 4 to 6 x 6 tokens" in asked.said[0]
    old, new = own.state_dict()["0.pos_embed"], back.state_dict()["0.pos_embed"]
    assert torch.equal(new[:, 0], old[:, 0]), "the class token's row is kept"
    grid = old[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    assert torch.equal(new[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    others = {name: tensor for name, tensor in own.state_dict().items() if name != "0.pos_embed"}
    assert same({n: t for n, t in back.state_dict().items() if n in others}, others)


@pytest.mark.parametrize("values", [VIT, VMOE])
def test_a_teachers_blocks_come_back_in_any_order(values: dict[str, Any], tmp_path: Path) -> None:
    own = network(values, 1)
    files = exported(own, "m2mkd-blocks", tmp_path / "blocks")
    assert read_torch(files[1])["divided_depths"] == [1, 2]
    assert same(imported(files[::-1], wanted(values)).state_dict(), own.state_dict())
    with pytest.raises(RequestError, match="has 2 modules, but 1 files"):
        imported(files[:1], wanted(values))
    with pytest.raises(RequestError, match=r"stand for modules \[0, 0\], not for each of 0 to 1 once"):
        imported([files[0], files[0]], wanted(values))


@pytest.mark.parametrize("split", [False, True])
def test_students_with_experts_come_back_without_their_stitches(split: bool, tmp_path: Path) -> None:
    host, own = network({**VIT, "width": 8, "heads": 1, "depths": [1, 1]}, 3), network(VMOE, 1)
    modules = [stitched(own[i], host, i, "ln-linear") for i in range(2)]
    files = exported_modules(modules, tmp_path, split=split)
    (stage,) = read_torch(files[1])["model_stages"]
    experts = "blocks.0.moe.experts.1.htoh4.weight" if split else "blocks.0.moe.experts.htoh4.weight"
    assert stage[experts].shape == ((1, 64, 16) if split else (3, 64, 16))
    asked = wanted(VMOE)
    assert same(imported(files, asked).state_dict(), own.state_dict())
    assert "left out: blocks.0.post_stitch.fc.bias" in asked.said[0]
    with pytest.raises(RequestError, match="holds one module .m2mkd-student., not a network"):
        load(network(VMOE, 2), files[0])
    with pytest.raises(RequestError, match="name it, such as --model vmoe-b"):
        imported(files, Wanted(None, IMAGES, 5))


@pytest.mark.parametrize(("pixels", "classes"), [(16, 5), (32, 7)])
def test_a_circuits_students_come_back_in_the_circuit(pixels: int, classes: int, tmp_path: Path) -> None:
    seen = network(NAC, 1, Port.of("image", channels=3, size=pixels), classes)
    host = network({**VIT, "width": 8, "heads": 1, "depths": [1, 1, 1, 1]}, 3)
    with Key.of(0, "students").forked():
        modules = [stitched(student(seen, i, 8), host, i, "linear") for i in range(4)]
    files = exported_modules(modules, tmp_path)
    assert [f.name for f in files] == ["ReadInStudent.pth", "MediatorStudent_1.pth", "MediatorStudent_2.pth",
                                       "ReadOutStudent.pth"]  # fmt: skip
    assert not any(name.endswith(("code", "state")) for f in files for name in read_torch(f)["model"])
    asked = wanted(NAC)
    state = imported(files, asked).state_dict()
    assert torch.equal(state["2.attention.query.weight"], modules[1].state_dict()["1.attention.query.weight"])
    assert torch.equal(state["0.tokenizer.downs.0.0.weight"], seen.state_dict()["0.tokenizer.downs.0.0.weight"])
    assert ("0.tokenizer.grid" in asked.said[-1]) == (pixels != 16), "a grid of other images stays behind"
    assert "shared.mediator.signatures" in asked.said[-1]


def test_every_tensor_that_lacks_its_counterpart_is_named_and_refused(tmp_path: Path) -> None:
    own = network(VIT, 1)
    state = {**published_state(own), "head_dist.bias": torch.zeros(5)}
    del state["blocks.1.norm1.bias"]
    state["norm.weight"] = torch.zeros(4)
    write_state(state, tmp_path / "odd.safetensors")
    with pytest.raises(RequestError) as caught:
        imported([tmp_path / "odd.safetensors"], wanted(VIT))
    for part in (
        "missing: blocks.1.norm1.bias",
        "unexpected: head_dist.bias",
        "norm.weight is [4], the network wants [16]",
    ):
        assert part in str(caught.value)
    state["norm.weight"] = torch.zeros(16)
    write_torch({"state_dict": state}, tmp_path / "odd.pth")
    asked = wanted(VIT, allow_missing=["blocks.1.norm1.*"], allow_unexpected=["head_dist.*"])
    imported([tmp_path / "odd.pth"], asked)
    assert "missing: blocks.1.norm1.bias; left out: head_dist.bias" in asked.said[0]


@pytest.mark.parametrize("state", [VMOE])
def test_experts_are_stacked_and_split(state: dict[str, Any]) -> None:
    stacked = published_state(network(state, 1))
    assert same(stacked_experts(split_experts(stacked)), stacked)
    assert same(stacked_experts(stacked), stacked)


def test_a_layout_that_cannot_hold_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot hold this network, which is a circuit"):
        exported(network(NAC, 1), "timm", tmp_path / "x")
    with pytest.raises(RequestError, match="cannot hold this network, which is no circuit"):
        exported(network(VIT, 1), "nac", tmp_path / "x")
    with pytest.raises(RequestError, match="holds Vision Transformers; this network has a ConvStem"):
        exported(network({**VIT, "stem": "conv"}, 1), "timm", tmp_path / "x")
    with pytest.raises(RequestError, match="is written as deep-incubation, m2mkd-blocks, nac, timm"):
        exported(network(VIT, 1), "onnx", tmp_path / "x")


def test_files_that_do_not_tell_enough(tmp_path: Path) -> None:
    (file,) = exported(network(NAC, 1), "nac", tmp_path / "n.pth")
    with pytest.raises(RequestError, match="does not tell its sizes: name the model"):
        imported([file], Wanted())
    with pytest.raises(RequestError, match="--data NAME"):
        imported([file], Wanted(MODELS.read(NAC)))
    assert read(file).layout == "nac"
    assert nac_files.is_circuit(read(file).state)
    with pytest.raises(RequestError, match="holds a whole network: import it alone"):
        imported([file, file], wanted(NAC))


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("--model", "vit-bb", "vit-b"),
        ("--model", "{name: vit, width: x}", "width"),
        ("--model", "{name: [", "--model"),
        ("--data", "imagenett", "--data imagenett: .*imagenet"),
        ("--data", "image-folder", "path"),
    ],
)
def test_models_and_data_are_written_as_in_a_recipe(option: str, text: str, told: str) -> None:
    assert read_params(MODELS, "--model", "{name: vit, width: 32}").width == 32
    assert read_params(DATA, "--data", "{name: cifar10, size: 224}").size == 224
    with pytest.raises(RequestError, match=told):
        read_params(MODELS if option == "--model" else DATA, option, text)


def _code(path: Path) -> None:
    torch.save({"model": Path}, path)


def _pickled(path: Path) -> None:
    path.write_bytes(b"\x80\x02cposix\nsystem\nq\x00U\x04trueq\x01\x85q\x02Rq\x03.")


@pytest.mark.parametrize("write", [_code, _pickled])
def test_files_that_hold_code_are_not_opened(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "bad.pth")
    with pytest.raises(RequestError, match="files that hold code are not opened"):
        read(tmp_path / "bad.pth")
