"""Looking into a circuit: links, usage and pruning, against what attention itself gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modnet.chain import Port, describe, rebuild
from modnet.data import load
from modnet.errors import RequestError
from modnet.evaluation.circuit import PIXELS, analyse, connectivity, picture, usage
from modnet.evaluation.cost import cost
from modnet.models.nac import nac
from modnet.randomness import Key
from modnet.recipe.nac import NAC
from modnet.recipe.sources import Source
from modnet.registry import DATA
from modnet.surgery import with_mediators, with_nearest_links
from modnet.surgery.pruning import open_links

PORT = Port.of("image", channels=1, size=8)
SMALL: dict[str, Any] = {
    "width": 16, "signatures": 4, "inputs": 3, "mediators": 12, "outputs": 2, "iterations": 2, "heads": 2,
    "head_width": 8, "stem_depths": [1], "stem_patch": 4, "positions": 4, "graph": {"name": "none"},
}  # fmt: skip


def circuit(**values: Any) -> Any:
    with Key.of(0, "circuit").forked():
        return nac(NAC.model_validate({**SMALL, **values}), PORT, 10).eval()


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_links_are_the_kernels_of_the_propagators() -> None:
    network = circuit()
    network.leaves[2].kernel.bandwidth.data.fill_(0.5)
    first, second = connectivity(network)
    z = torch.nn.functional.normalize(network.shared_part.mediator.signatures.detach(), dim=-1)
    own = 1 - z @ z.T
    expected = torch.where(own <= 0.9, (-own / 0.5).exp(), torch.zeros(()))
    torch.testing.assert_close(first[:, 3:], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(first == 0, second == 0), "one truncation, whatever the bandwidth"
    assert open_links(network) == int((first > 0).sum())


def test_usage_is_the_attention_that_mediators_get(tiny: Any) -> None:
    network, seen = circuit(), load(DATA.read({"name": "digits", "per_class": 5}))
    heard = usage(network, seen.val, seen, batch=50)
    assert heard.shape == (12,)
    assert (heard >= 0).all()
    assert heard.sum() < 1, "the rest of the attention is given to the input modules"
    torch.testing.assert_close(usage(network, seen.val, seen, batch=33), heard)
    with torch.no_grad():
        lonely = network.shared_part.mediator.signatures
        lonely.copy_(torch.ones(12, 4))
        lonely[5] = -1.0
        network.shared_part.input.signatures.fill_(1.0)
        network.shared_part.output.signatures.fill_(1.0)
        network.leaves[4].kernel.truncation = 0.9
    assert usage(network, seen.val, seen).argmin() == 5, "whom only it itself hears"


@pytest.mark.parametrize("values", [{}, {"share_codes": False}, {"seeds": "learned"}, {"hears_inputs": "first"}])
def test_mediators_that_nobody_hears_can_be_left_out(values: dict[str, Any]) -> None:
    network = circuit(**values)
    kept = torch.tensor([0, 2, 3, 7])
    with torch.no_grad():
        network.shared_part.mediator.signatures.copy_(torch.tensor([-1.0, 0, 0, 0]).expand(12, 4))
        network.shared_part.mediator.signatures[kept] = torch.tensor([1.0, 0, 0, 0])
        for part in (network.shared_part.input, network.shared_part.output):
            part.signatures.copy_(torch.tensor([1.0, 0, 0, 0]).expand_as(part.signatures))
        for leaf in network.leaves:
            if hasattr(leaf, "kernel"):
                leaf.kernel.truncation = 0.9
    smaller: Any = with_mediators(network, kept)
    for leaf in smaller.leaves:
        if hasattr(leaf, "kernel"):
            leaf.kernel.truncation = 0.9
    with torch.no_grad():
        torch.testing.assert_close(smaller(images()), network(images()))
    again = rebuild(describe(smaller))
    again.load_state_dict(smaller.state_dict())
    assert cost(smaller, PORT).macs < cost(network, PORT).macs
    assert torch.equal(with_mediators(circuit(), torch.arange(12))(images()), circuit()(images()))


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3])
def test_links_are_cut_from_the_farthest(share: float) -> None:
    network = circuit()
    smaller = with_nearest_links(network, share)
    assert open_links(smaller) == pytest.approx(share * open_links(network), abs=12)
    before, after = connectivity(network)[0], connectivity(smaller)[0]
    cut = (before > 0) & (after == 0)
    assert cut.any() == (share < 1)
    if share < 1:
        assert before[cut].max() <= after[after > 0].min()
    else:
        assert torch.equal(smaller(images()), network(images()))
    again = rebuild(describe(smaller))
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.eval()(images()), smaller(images()))


def test_everything_is_written_into_a_folder(tmp_path: Path) -> None:
    source = DATA.read({"name": "digits", "per_class": 5})
    assert isinstance(source, Source)
    found = analyse(circuit(), load(source), tmp_path / "look", (1.0, 0.5), 40)
    assert [(p.what, p.share, p.mediators) for p in found] == [
        ("modules", 1.0, 12), ("modules", 0.5, 6), ("links", 1.0, 12), ("links", 0.5, 12)
    ]  # fmt: skip
    assert found[0].top1 == found[2].top1, "nothing is pruned"
    assert found[1].macs < found[0].macs == found[3].macs
    facts = json.loads((tmp_path / "look" / "circuit.json").read_text())
    assert len(facts["usage"]) == 12
    assert facts["pruning"][1]["top1"] == found[1].top1
    with Image.open(tmp_path / "look" / "links.png") as drawn:
        assert drawn.height >= PIXELS


def test_communities_are_blocks_in_the_picture(tmp_path: Path) -> None:
    group = torch.tensor([0, 1] * 4)
    links = (group[:, None] == group).float()
    picture(torch.cat([torch.zeros(8, 2), links], 1), tmp_path / "links.png")
    with Image.open(tmp_path / "links.png") as drawn:
        scale = drawn.height // 8
        drawn_red = np.asarray(drawn)[..., 0]
        dark = [[bool(drawn_red[r * scale, (3 + c) * scale] < 128) for c in range(8)] for r in range(8)]
    assert dark == [[(r < 4) == (c < 4) for c in range(8)] for r in range(8)]


def test_another_network_is_no_circuit(tiny: Any) -> None:
    with pytest.raises(RequestError, match="no Neural Attentive Circuit"):
        connectivity(tiny())
    with pytest.raises(RequestError, match="keep one at least"):
        with_mediators(circuit(), torch.tensor([], dtype=torch.int64))


STEP = """
import resource, torch
from modnet.chain import Pass, Port
from modnet.models.nac import nac
from modnet.randomness import Key
from modnet.registry import MODELS
import modnet.recipe.nac
params = MODELS.read({"name": "nac-tiny-imagenet", "graph": {"name": "none"}})
chain = nac(params, Port.of("image", channels=3, size=64), 200)
optimizer = torch.optim.AdamW(chain.parameters(), lr=1e-3, fused=True)
x, y = torch.randn(8, 3, 64, 64), torch.arange(8)
for step in range(2):
    ctx = Pass(Key.of(0, "step").fold(step), torch.arange(8))
    loss = torch.nn.functional.cross_entropy(chain(x, ctx), y) + sum(ctx.losses.values())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the largest resident size is that of Linux")
def test_a_training_step_of_the_published_circuit_stays_below_4_gb() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, env=environment, check=True)
    used = int(done.stdout) / 1024
    print(f"largest resident size {used:.0f} MiB")
    assert used < 4 * 1024
