"""Checkpoints of Deep Incubation, m2mKD and timm: written, read, refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.interop.deep_incubation import architecture, chain_of, load_stages, read_stages, stages_of, write_stages
from modnet.interop.files import read_state, read_torch, write_state, write_torch
from modnet.interop.keys import published_state
from modnet.interop.m2mkd import (
    load_student_module,
    load_teacher_module,
    read_student_module,
    read_teacher_module,
    write_student_module,
    write_teacher_module,
)
from modnet.interop.timm_vit import load_flat, read_flat, write_flat
from modnet.surgery import cut, stitched

Tiny = Callable[..., Chain]


def images() -> Tensor:
    return torch.linspace(-1, 1, 128).view(2, 1, 8, 8)


def equal(left: Chain, right: Chain) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- writing -------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.pth"
    write_torch({"a": torch.ones(2)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_torch({"a": lambda: None}, path)
    assert [file.name for file in path.parent.iterdir()] == ["state.pth"]
    assert torch.equal(read_torch(path)["a"], torch.ones(2))


def test_views_can_be_written(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    write_state({"all": table, "turned": table.T}, tmp_path / "state.safetensors")
    assert torch.equal(read_state(tmp_path / "state.safetensors")["turned"], table.T)
    assert len(list(tmp_path.iterdir())) == 1


# ---- Deep Incubation ---------------------------------------------------------------------------------


def test_modules_survive_being_written_and_read(tiny: Tiny, tmp_path: Path) -> None:
    chain, path = tiny(depths=(2, 1, 3), seed=1), tmp_path / "finished_checkpoint.pth"
    write_stages(chain, path, epoch=7)
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 7
    assert len(content["model"]) == 2 * len(chain.state_dict())
    assert torch.equal(content["model"]["blocks.5.norm1.bias"], content["model"]["stages.2.blocks.2.norm1.bias"])
    again = tiny(depths=(2, 1, 3), seed=2)
    reports = load_stages(again, read_stages(path), str(path))
    assert equal(again, chain)
    assert sum(len(report.loaded) for report in reports) == len(chain.state_dict())


def test_either_half_of_a_checkpoint_is_enough(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 2))
    stages = [published_state(module) for module in chain]
    staged = {f"stages.{k}.{n}": t for k, s in enumerate(stages) for n, t in s.items()}
    for content in ({"model_stages": stages}, {"model": staged}, {"model_stages": stages, "model": staged}):
        found = stages_of(content, "file")
        again = tiny(depths=(1, 2), seed=5)
        load_stages(again, found, "file")
        assert equal(again, chain)


@pytest.mark.parametrize("name", ["stages.1.blocks.0.norm1.bias", "blocks.1.norm1.bias"])
def test_copies_that_differ_are_refused(tiny: Tiny, tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.pth"
    write_stages(tiny(depths=(1, 2)), path)
    content = torch.load(path, weights_only=True)
    content["model"][name] = content["model"][name] + 1
    with pytest.raises(RequestError, match=f"copies differ in {name}"):
        stages_of(content, "c.pth")
    del content["model"][name]
    with pytest.raises(RequestError, match=name):
        stages_of(content, "c.pth")


def test_another_division_is_refused_not_truncated(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 2))
    stages = [published_state(module) for module in cut(chain, (2, 1))]
    with pytest.raises(RequestError, match=r"modules of \[2, 1\] blocks, the network into \[1, 2\]"):
        load_stages(chain, stages, "file")
    with pytest.raises(RequestError, match=r"modules of \[2\]"):
        load_stages(chain, stages[:1], "file")


def test_a_fault_in_the_last_module_leaves_the_first_untouched(tiny: Tiny) -> None:
    chain, before = tiny(seed=1), tiny(seed=1)
    stages = [published_state(module) for module in tiny(seed=2)]
    del stages[2]["head.bias"]
    with pytest.raises(RequestError, match=r"module 2 of file .*missing: head\.bias"):
        load_stages(chain, stages, "file")
    assert equal(chain, before)


def test_a_network_is_built_from_its_tensors(tiny: Tiny) -> None:
    chain = tiny(depths=(2, 1), qkv_bias=False, norm_eps=1e-5).eval()
    stages = [published_state(module) for module in chain]
    params, port, classes = architecture(stages, heads=2)
    assert (params.width, params.depths, params.patch) == (16, (2, 1), 4)
    assert (params.qkv_bias, params.norm_eps, params.mlp_ratio) == (False, 1e-5, 4.0)
    assert (port, classes) == (Port.of("image", channels=1, size=8), 3)
    again = chain_of(stages, heads=2).eval()
    assert torch.equal(again(images()), chain(images()))
    with pytest.raises(RequestError, match="no whole network: cls_token"):
        architecture(stages[1:])


# ---- m2mKD -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_teacher_module_survives_being_written_and_read(tiny: Tiny, tmp_path: Path, index: int) -> None:
    chain, path = tiny(depths=(2, 1, 2), seed=1), tmp_path / "block.pth"
    write_teacher_module(chain, index, path, "vit_tiny")
    file = read_teacher_module(path)
    assert (file.model, file.index, file.depths) == ("vit_tiny", index, (2, 1, 2))
    module = tiny(depths=(2, 1, 2), seed=2)[index]
    load_teacher_module(module, file)
    assert equal(module, chain[index])


def test_an_incomplete_teacher_module_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    path = tmp_path / "block.pth"
    torch.save({"model_name": "x", "block_state_dict": {}}, path)
    with pytest.raises(RequestError, match="lacks block_index, divided_depths"):
        read_teacher_module(path)
    state = published_state(tiny(depths=(2, 1))[0])
    whole = {"model_name": "x", "block_index": 1, "divided_depths": [2, 1], "block_state_dict": state}
    torch.save(whole, path)
    with pytest.raises(RequestError, match="module 1 has 1 blocks, but it holds 2"):
        read_teacher_module(path)


def test_a_students_stitches_are_kept_or_left_out_but_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    meta, student = tiny(), tiny(seed=1, width=8)
    learner, path = stitched(student[1], meta, 1), tmp_path / "student.pth"
    write_student_module(learner, path)
    state = read_student_module(path)
    same = stitched(tiny(seed=3, width=8)[1], meta, 1)
    assert load_student_module(same, state, "s").unexpected == ()
    assert equal(same, learner)
    bare = tiny(seed=4, width=8)[1]
    report = load_student_module(bare, state, "s")
    assert len(report.unexpected) == 8
    assert equal(bare, student[1])
    with pytest.raises(RequestError, match="missing: blocks.0.post_stitch"):
        load_student_module(same, published_state(bare), "s")
    with pytest.raises(RequestError, match="unexpected: other"):
        load_student_module(bare, {**state, "other": torch.zeros(1)}, "s")


def test_a_student_file_holds_one_module(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    write_stages(tiny(depths=(1, 1)), path)
    with pytest.raises(RequestError, match="holds 2 modules"):
        read_student_module(path)


# ---- timm and files ----------------------------------------------------------------------------------


def test_flat_names_are_timms_own(tiny: Tiny, tmp_path: Path) -> None:
    chain, path = tiny(depths=(2, 1)).eval(), tmp_path / "vit.safetensors"
    write_flat(chain, path)
    sizes: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4}
    model = timm.models.VisionTransformer(img_size=8, in_chans=1, num_classes=3, **sizes).eval()
    model.load_state_dict(read_state(path), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), chain(images()), atol=1e-6, rtol=1e-5)
    again = tiny(depths=(3,), seed=9).eval()
    read_flat(again, path)
    assert equal(again, chain)
    load_flat(again, model.state_dict())


def test_mappings_around_a_state_dict_are_taken_off(tiny: Tiny, tmp_path: Path) -> None:
    chain, path = tiny(), tmp_path / "vit.pth"
    for content in ({"model": published_state(chain)}, {"state_dict": published_state(chain)}):
        torch.save(content, path)
        assert read_flat(tiny(seed=3), path).missing == ()
    torch.save({"epoch": 3}, path)
    with pytest.raises(RequestError, match="epoch are no tensors"):
        read_state(path)


class Code:
    """Anything but tensors and plain values."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("executed",))


def test_files_that_hold_code_or_nonsense_are_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"model": Code()}, protocol=2))
    with pytest.raises(RequestError, match="files that hold code are not opened"):
        read_torch(path)
    torch.save({"model": Code()}, path)
    with pytest.raises(RequestError, match="files that hold code"):
        read_torch(path)
    assert "executed" not in capsys.readouterr().out
    path.write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="cannot be read"):
        read_torch(path)
    with pytest.raises(RequestError, match="there is no checkpoint"):
        read_torch(tmp_path / "absent.pth")
    torch.save([1], path)
    with pytest.raises(RequestError, match="holds a list"):
        read_torch(path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="cannot be read as safetensors"):
        read_state(tmp_path / "x.safetensors")


def test_a_checkpoint_of_another_kind_says_what_it_holds() -> None:
    with pytest.raises(RequestError, match="it holds optimizer, epoch"):
        stages_of({"optimizer": {}, "epoch": 1}, "file")
