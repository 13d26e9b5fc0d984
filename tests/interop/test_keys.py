"""Names of published tensors, and loading that passes nothing over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modnet.chain import Chain
from modnet.errors import RequestError
from modnet.interop.keys import load_published, published_names, published_state
from modnet.layers.stitches import LinearStitch, NormLinearStitch
from modnet.surgery import stitched

Tiny = Callable[..., Chain]


def test_blocks_are_counted_from_zero_in_the_chain_given(tiny: Tiny) -> None:
    chain = tiny(depths=(1, 2))
    names = published_names(chain)
    assert names["0.cls_token"] == "cls_token"
    assert names["0.patch_embed.proj.weight"] == "patch_embed.proj.weight"
    assert names["3.attn.qkv.bias"] == "blocks.2.attn.qkv.bias"
    assert names["4.norm.weight"] == "norm.weight"
    assert names["4.head.weight"] == "head.weight"
    assert published_names(chain[1])["0.mlp.fc1.weight"] == "blocks.0.mlp.fc1.weight"
    assert len(set(names.values())) == len(names)


def test_stitches_belong_to_the_block_they_follow_or_precede(tiny: Tiny) -> None:
    learner = stitched(tiny(depths=(1, 2, 1), seed=1, width=8)[1], tiny(depths=(1, 1, 1)), 1)
    names = set(published_names(learner).values())
    assert {"blocks.0.pre_stitch.ln.weight", "blocks.0.pre_stitch.fc.bias"} < names
    assert {"blocks.1.post_stitch.ln.bias", "blocks.1.post_stitch.fc.weight"} < names
    first, block, last = tiny(depths=(1, 1)).leaves[1:]
    kept = Chain([first, LinearStitch(16, 4), LinearStitch(4, 16), block, last])
    inner = [n for n in published_names(kept).values() if n.endswith("stitch.fc.weight")]
    assert inner == ["blocks.0.post_stitch.fc.weight", "blocks.1.pre_stitch.fc.weight"]


def test_loading_copies_everything_and_says_so(tiny: Tiny) -> None:
    source, chain = tiny(seed=1), tiny(seed=2)
    report = load_published(chain, published_state(source), "file")
    assert all(torch.equal(a, b) for a, b in zip(chain.parameters(), source.parameters(), strict=True))
    assert set(report.loaded) == set(published_names(chain).values())
    assert str(report) == f"{len(report.loaded)} tensors loaded"


def test_every_fault_is_named_and_nothing_is_loaded(tiny: Tiny) -> None:
    chain, state = tiny(seed=1), published_state(tiny(seed=2))
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    state["blocks.7.norm1.weight"] = state.pop("blocks.1.norm1.weight")
    del state["head.bias"]
    state["cls_token"] = torch.zeros(1, 1, 3)
    with pytest.raises(RequestError) as caught:
        load_published(chain, state, "file.pth")
    text = str(caught.value)
    assert text.startswith("file.pth does not fit this network")
    assert "missing: blocks.1.norm1.weight, head.bias" in text
    assert "unexpected: blocks.7.norm1.weight" in text
    assert "cls_token is [1, 1, 3], the network wants [1, 1, 16]" in text
    assert all(torch.equal(before[name], t) for name, t in chain.state_dict().items())


def test_what_is_asked_for_may_differ(tiny: Tiny) -> None:
    chain, state = tiny(seed=1), published_state(tiny(seed=2))
    state["extra.weight"] = torch.zeros(1)
    del state["head.bias"], state["head.weight"]
    report = load_published(chain, state, "file", allow_missing=["head.*"], allow_unexpected=["extra.*"])
    assert report.missing == ("head.bias", "head.weight")
    assert report.unexpected == ("extra.weight",)
    assert "missing: head.bias, head.weight; left out: extra.weight" in str(report)
    state["cls_token"] = torch.zeros(2)
    with pytest.raises(RequestError, match="another shape"):
        load_published(chain, state, "file", allow_missing=["*"], allow_unexpected=["*"])


def test_a_kept_norm_stitch_has_its_names(tiny: Tiny) -> None:
    names = published_names(Chain([NormLinearStitch(4, 16), tiny().leaves[1]]))
    assert names["0.ln.weight"] == "blocks.0.pre_stitch.ln.weight"
