"""Small convolutional networks: ports that tell the truth, cut, assembled, frozen, moved and counted as all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modnet.chain import Chain, Pass, Port, describe, parameter_count, rebuild
from modnet.engine.optimizers import declared_matrices
from modnet.errors import RequestError
from modnet.evaluation.cost import cost, training_flops
from modnet.models.convnet import convnet
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ConvNet, ViT
from modnet.recipe.stages import Mismatch
from modnet.registry import MODELS
from modnet.surgery import assemble, cut, hybrid
from modnet.surgery.adapting import adapt
from modnet.surgery.stitching import stitched

PORT = Port.of("image", channels=3, size=12)


def build(port: Port = PORT, classes: int = 5, **values: Any) -> Chain:
    with Key.of(3).forked():
        return convnet(ConvNet.model_validate({"width": 4, "depths": (1, 2, 1), **values}), port, classes)


def images(size: int = 12, count: int = 3, channels: int = 3) -> torch.Tensor:
    return Key.of(0).normal(torch.arange(count), channels * size * size).view(count, channels, size, size)


def test_modules_hold_their_blocks_and_the_ends_stem_and_head() -> None:
    roles = [[leaf.role for leaf in module.leaves] for module in build()]
    assert roles == [["stem", "block"], ["block", "block"], ["block", "head"]]
    flows = [str(module.gives) for module in build()]
    assert flows == [
        "maps(channels=4, height=6, width=6)",
        "maps(channels=8, height=3, width=3)",
        "logits(classes=5, per=image)",
    ]


@settings(max_examples=20, deadline=None)
@given(
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=4),
    width=st.integers(1, 5),
    growth=st.sampled_from([1.0, 1.5, 2.0]),
    grid=st.integers(1, 7),
    cell=st.integers(1, 3),
    convs=st.integers(0, 2),
    halve=st.sampled_from(["all", "later"]),
    pool=st.sampled_from(["mean", "flat"]),
)
def test_what_flows_is_what_the_ports_say_and_parts_cost_what_the_whole_does(
    depths: list[int], width: int, growth: float, grid: int, cell: int, convs: int, halve: str, pool: str
) -> None:
    port = Port.of("image", channels=1, size=grid * cell)
    if not convs:
        depths, halve = [1] * len(depths), "all"
    values = {
        "width": width,
        "growth": growth,
        "depths": tuple(depths),
        "cell": cell,
        "convs": convs,
        "pool": pool,
        "halve": halve,
    }
    chain = build(port, 3, **values).eval()
    x = images(grid * cell, channels=1)
    for leaf in chain.leaves:
        x = leaf(x, Pass())
        assert leaf.gives is not None
        expected = leaf.gives["classes"] or (leaf.gives["channels"], leaf.gives["height"], leaf.gives["width"])
        assert tuple(x.shape[1:]) == (expected if isinstance(expected, tuple) else (expected,))
    assert sum(cost(module, module.takes or port).macs for module in chain) == cost(chain, port).macs
    apart = sum(training_flops(module, module.takes or port, i > 0) for i, module in enumerate(chain))
    assert apart == training_flops(chain, port)


def test_parameters_and_multiply_adds_by_hand() -> None:
    chain = build(Port.of("image", channels=1, size=8), 10, width=2, depths=(1, 1), pool="flat")
    kernels = [(4, 2, 16), (2, 2, 16), (2, 4, 4), (4, 4, 4)]  # channels in and out, cells
    norms = 2 * sum(out for _, out, _ in kernels)
    assert parameter_count(chain) == sum(9 * a * b for a, b, _ in kernels) + norms + 16 * 10 + 10
    assert cost(chain, Port.of("image", channels=1, size=8)).macs == sum(9 * a * b * n for a, b, n in kernels) + 160


def test_a_cut_is_taken_back_bit_for_bit_and_a_network_is_rebuilt_from_data() -> None:
    chain = build(pool="flat").eval()
    x = images()
    assert torch.equal(assemble(list(cut(chain, [2, 2])))(x), chain(x))
    again = rebuild(describe(chain)).eval()
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(x), chain(x))


@pytest.mark.parametrize("pool", ["mean", "flat"])
def test_maps_stay_channels_last_forth_and_back(pool: str) -> None:
    chain = build(Port.of("image", channels=1, size=12), pool=pool).train()
    seen: list[bool] = []

    def look(grad: torch.Tensor) -> None:
        seen.append(grad.is_contiguous(memory_format=torch.channels_last))

    x = images(channels=1)
    for leaf in chain.leaves[:-1]:
        x = leaf(x, Pass())
        assert x.is_contiguous(memory_format=torch.channels_last), type(leaf).__name__
        x.register_hook(look)
    chain.leaves[-1](x, Pass()).square().sum().backward()
    assert seen == [True] * (len(chain.leaves) - 1)


def test_muon_gets_the_kernels_of_the_blocks() -> None:
    chain = build()
    blocks = [i for i, leaf in enumerate(chain.leaves) if leaf.role == "block"]
    kernels = {name for name, p in chain.named_parameters() if p.ndim == 4 and int(name.partition(".")[0]) in blocks}
    assert declared_matrices(chain) == dict.fromkeys(kernels, 1)
    assert len(kernels) == 4 + 2  # one of each block's branch, one of each transition


def test_a_frozen_twin_keeps_its_statistics_and_gradients_pass_it() -> None:
    chain = build()
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    learner = build()[1]
    inside = hybrid(chain, learner, at=1).train()
    inside(images(), Pass()).square().sum().backward()
    assert all(p.grad is not None for p in learner.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in chain.state_dict().items())


def test_a_sample_skips_the_branch_by_its_own_draw() -> None:
    block = build(depths=(2,), drop_path=0.5).leaves[2].train()
    x = images(6, 64, 4).relu()
    full = Pass()
    kept = block(x, full) - x
    drawn = block(x, Pass(Key.of(1), torch.arange(64))) - x
    skipped = drawn.flatten(1).abs().amax(1) == 0
    assert 16 < int(skipped.sum()) < 48
    torch.testing.assert_close(drawn[~skipped], 2 * kept[~skipped])


@pytest.mark.parametrize("pool", ["mean", "flat"])
def test_a_trained_network_follows_other_images_and_classes(pool: str) -> None:
    chain = build(pool=pool).eval()
    adapted, changes = adapt(chain, Port.of("image", channels=3, size=20), 7, Mismatch(), Key.of(0))
    assert adapted(images(20)).shape == (3, 7)
    assert [change.split(":")[0] for change in changes] == ["5.head.weight", "5.head.bias"]


def test_a_vit_learns_its_modules_between_stitches() -> None:
    teacher = build(Port.of("image", channels=3, size=16), depths=(1, 1, 1))
    student = vit(ViT(width=8, heads=2, depths=(1, 1, 1), patch=4), Port.of("image", channels=3, size=16), 5)
    x = images(16)
    for i, (module, place) in enumerate(zip(student, teacher.frozen(), strict=True)):
        learned = stitched(module, teacher, i, "linear")(x)
        x = place(x)
        assert learned.shape == x.shape


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(RequestError, match="12 x 12 pixels do not divide into cells of 5; cells that do: 1, 2, 3, 4"):
        build(cell=5)


@pytest.mark.parametrize("values", [{"depths": (1, 2), "halve": "all"}, {"depths": (1, 1)}])
def test_blocks_without_anything_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only blocks that halve hold anything"):
        build(convs=0, **values)


def test_all_modules_can_halve() -> None:
    flows = [leaf.gives for leaf in build(depths=(1, 1), convs=0, halve="all").leaves[:-1]]
    assert flows == [Port.of("maps", channels=c, height=s, width=s) for c, s in ((4, 6), (8, 3), (16, 2))]


def test_the_smoke_size_keeps_the_modules() -> None:
    params = MODELS.read({"name": "convnet", "width": 64, "depths": [2, 3], "pool": "flat"})
    smoke = MODELS.get("convnet").smoke
    assert smoke is not None
    small = smoke(params, 8)
    assert (small.width, small.depths, small.pool) == (8, (1, 1), "flat")  # type: ignore[attr-defined]
