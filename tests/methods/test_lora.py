"""Low-rank experts by stages: a group, adapters apart, and routers between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modnet.errors import RequestError
from modnet.layers.lora import Adapted
from modnet.recipe import RecipeError

HALVES = (
    "data.low={name: class-subset, of: digits, classes: [0, 1, 2, 3, 4], per_class: 20}",
    "data.high={name: class-subset, of: digits, classes: [5, 6, 7, 8, 9], per_class: 20}",
    "stages.first={run: route, method: lora, from: base, data: low, mix: sum, experts: 1, rank: 2, optimizer: adamw}",
    "stages.second={run: route, method: lora, from: base, data: high, mix: sum, experts: 1, rank: 2, optimizer: adamw}",
)
MIXED = "stages.mixed={run: route, method: lora, from: base, adapters: [first, second], optimizer: adamw%s}"
GROUP = "stages.group={run: route, method: lora, from: base, mix: sum, targets: [q, v], optimizer: adamw%s}"


def tables(chain: Any) -> dict[str, torch.Tensor]:
    return {name: t for name, t in chain.state_dict().items() if ".adapters." in name and name.endswith((".a", ".b"))}


def test_routers_learn_between_frozen_adapters_of_other_stages(taught: Any) -> None:
    inputs = taught.run(*HALVES, MIXED % ", learn: router", only="mixed")
    first, second, mixed = (taught.chain(inputs, name) for name in ("first", "second", "mixed"))
    for name, table in tables(mixed).items():
        assert torch.equal(table, torch.cat([tables(first)[name], tables(second)[name]]))
    base = taught.chain(inputs, "base").state_dict()
    for i, leaf in enumerate(mixed.leaves):
        if isinstance(leaf, Adapted):
            assert all(torch.equal(t, base[f"{i}.{name}"]) for name, t in leaf.inner.leaves[0].state_dict().items())
    facts = inputs.store.result(inputs.keys["mixed"])
    routers = sum(t.numel() for name, t in mixed.state_dict().items() if "router" in name)
    head = sum(p.numel() for p in mixed.leaves[-1].parameters())
    assert facts["learned_parameters"] == routers + head
    assert first.gives["classes"] == 5
    assert mixed.gives["classes"] == 10


def test_adapters_come_from_files_as_well(taught: Any, tmp_path: Path) -> None:
    inputs = taught.run(*HALVES, only="first")
    file = tmp_path / "first.safetensors"
    file.write_bytes((Path(inputs.folder("first")) / "network.safetensors").read_bytes())
    line = f"stages.mixed={{run: route, method: lora, from: base, files: ['{file}'], learn: router, optimizer: adamw}}"
    inputs = taught.run(*HALVES, line, only="mixed")
    given, mixed = tables(taught.chain(inputs, "first")), tables(taught.chain(inputs, "mixed"))
    assert given
    assert all(torch.equal(table, given[name]) for name, table in mixed.items())


def test_given_adapters_may_go_on_learning_near_where_they_were(taught: Any) -> None:
    def distance(*more: str) -> float:
        inputs = taught.run(*HALVES, MIXED % "".join(more), only="mixed")
        first, second, mixed = (tables(taught.chain(inputs, name)) for name in ("first", "second", "mixed"))
        return sum(
            float((table - torch.cat([first[name], second[name]])).square().sum()) for name, table in mixed.items()
        )

    free, held = distance(", epochs: 2"), distance(", epochs: 2, preserve: 100.0")
    assert 0 < held < free


def test_a_group_is_folded_into_a_plain_network(taught: Any) -> None:
    inputs = taught.run(GROUP % ", orthogonal: 0.001, fold: true", only="group")
    chain, base = taught.chain(inputs, "group"), taught.chain(inputs, "base").state_dict()
    assert chain.state_dict().keys() == base.keys()
    changed = {name for name, t in chain.state_dict().items() if not torch.equal(t, base[name])}
    assert any(name.endswith("attn.qkv.weight") for name in changed)
    assert not any("proj" in name or "mlp" in name or "norm1" in name for name in changed)


def test_wrong_requests(taught: Any) -> None:
    for more, part in (
        (", learn: router", "about adapters that are given"),
        (", fold: true, mix: routed", "fold belongs to mix: sum"),
        (", preserve: 0.1", "preserve is about adapters"),
    ):
        with pytest.raises(RecipeError, match=part):
            taught.run(GROUP % more if "mix" not in more else GROUP.replace("mix: sum, ", "") % more, only="group")
    with pytest.raises(RequestError, match="holds no adapters"):
        taught.run(MIXED.replace("first, second", "base") % "", only="mixed")
    line = "stages.mixed={run: route, method: lora, from: base, files: [/no/such/file], optimizer: adamw}"
    with pytest.raises(RequestError, match="there is no file"):
        taught.run(line, only="mixed")
