from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modnet.chain import Chain
from modnet.engine.artifacts import load_chain, save_chain
from modnet.errors import RunFailed
from tests.engine.toy import Block, Head, toy_chain


def test_a_chain_comes_back_with_bounds_tensors_and_dtype(tmp_path: Path) -> None:
    chain = toy_chain(4)
    chain.leaves[1].to(torch.bfloat16)
    save_chain(tmp_path, "net", chain)
    loaded = load_chain(tmp_path, "net")
    assert loaded.bounds == chain.bounds
    state = loaded.state_dict()
    assert all(torch.equal(v.float(), state[k].float()) for k, v in chain.state_dict().items())


def test_shared_leaves_stay_shared(tmp_path: Path) -> None:
    block = Block()
    save_chain(tmp_path, "net", Chain([block, block, Head()]))
    loaded = load_chain(tmp_path, "net")
    assert loaded.leaves[0] is loaded.leaves[1]


def test_a_description_that_does_not_fit_its_tensors_is_refused(tmp_path: Path) -> None:
    save_chain(tmp_path, "net", toy_chain())
    path = tmp_path / "net.json"
    path.write_text(path.read_text().replace("[\n   0,\n   1,\n   3\n  ]", "[0, 2]"))
    with pytest.raises(RunFailed, match="does not fit the network that net.json describes"):
        load_chain(tmp_path, "net")


def test_damage_is_named(tmp_path: Path) -> None:
    save_chain(tmp_path, "net", toy_chain())
    path = tmp_path / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFailed, match=r"net\.safetensors is damaged"):
        load_chain(tmp_path, "net")
