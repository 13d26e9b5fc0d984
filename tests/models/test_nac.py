"""Circuits as chains: published sizes, cutting, storing, and what their modules own together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import modnet.recipe.loading  # noqa: F401  (registers the models)
from modnet.chain import Chain, Pass, Port, describe, parameter_count, rebuild
from modnet.engine.artifacts import load_chain, save_chain
from modnet.engine.optimizers import decays, declared_matrices, trainable
from modnet.errors import RequestError
from modnet.evaluation.cost import cost
from modnet.layers.drop_path import set_drop_path
from modnet.layers.nac.circuit import PoolingHead
from modnet.layers.nac.graphs import adjacency, graph, score
from modnet.layers.nac.kernel import Kernel
from modnet.layers.nac.latents import Latents
from modnet.layers.nac.regularisers import block_model, block_target
from modnet.models.nac import nac, prior
from modnet.models.nac_students import student, transplant
from modnet.randomness import Key
from modnet.recipe.nac import Graph
from modnet.registry import MODELS
from modnet.surgery import assemble, cut

SMALL = {
    "name": "nac",
    "width": 8,
    "codes": 6,
    "signatures": 4,
    "inputs": 3,
    "mediators": 5,
    "outputs": 2,
    "heads": 2,
    "head_width": 4,
    "stem_depths": [1, 0],
    "stem_patch": 2,
    "positions": 4,
    "graph": {"name": "none"},
}


def circuit(seed: int = 0, **values: Any) -> Chain:
    params = MODELS.read({**SMALL, **values})
    with Key.of(seed, "circuit").forked():
        chain = nac(params, Port.of("image", channels=1, size=8), 3)
        for p in chain.parameters():  # gains and layer scales start so small that they hide errors
            torch.nn.init.normal_(p, std=0.5)
        for part in chain.modules():
            if isinstance(part, Kernel):
                torch.nn.init.ones_(part.bandwidth)
    return chain


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def latents(chain: Chain) -> Latents:
    assert isinstance(chain.shared_part, Latents)
    return chain.shared_part


@pytest.mark.parametrize(
    ("name", "size", "classes", "parameters"),
    [("nac-tiny-imagenet", 64, 200, 26_703_342), ("nac-imagenet", 224, 1000, 37_589_294)],
)
def test_published_sizes(name: str, size: int, classes: int, parameters: int) -> None:
    port = Port.of("image", channels=3, size=size)
    with torch.device("meta"):
        chain = nac(MODELS.read(name), port, classes)
    assert parameter_count(chain) == parameters
    assert chain.depths == (1,) * 10
    assert cost(chain, port).parameters == parameters


@pytest.mark.parametrize(
    ("name", "size", "classes", "sizes"),
    [
        ("nac-tiny-imagenet", 224, 1000, (4_093_286, 3_496_070, 3_389_423)),
        ("nac-imagenet", 224, 1000, (5_898_246, 4_725_510, 4_583_407)),
    ],
)
def test_published_sizes_of_students(name: str, size: int, classes: int, sizes: tuple[int, ...]) -> None:
    """With their linear stitches to tokens of width 1280."""
    stitch = 1280
    with torch.device("meta"):
        chain = nac(MODELS.read(name), Port.of("image", channels=3, size=size), classes)
        students = [student(chain, i, stitch) for i in (0, 1, -1)]
    width = chain.leaves[1].arguments["width"]
    post, pre = width * stitch + stitch, stitch * width + width
    counted = [parameter_count(c) + extra for c, extra in zip(students, (post, pre + post, pre), strict=True)]
    assert counted == list(sizes)


def test_cutting_assembling_and_freezing_keep_the_function() -> None:
    chain, x = circuit().eval(), images()
    logits = chain(x)
    assert torch.equal(assemble(cut(chain, [1, 2, 1]))(x), logits)
    assert torch.equal(assemble([chain[:2].frozen(), chain[2:].frozen()])(x), logits)
    copy = chain.cloned()
    assert torch.equal(copy(x), logits)
    latents(copy).mediator.codes.data.zero_()
    assert not torch.equal(copy(x), logits)
    assert torch.equal(chain(x), logits)
    with pytest.raises(ValueError, match="shared parts"):
        _ = chain[:2] + circuit(1)[2:]


def test_a_stored_circuit_is_the_same_circuit(tmp_path: Path) -> None:
    chain = circuit(share_codes=False, seeds="learned").eval()
    save_chain(tmp_path, "network", chain)
    again = load_chain(tmp_path, "network").eval()
    assert describe(again) == describe(chain)
    assert torch.equal(again(images()), chain(images()))
    save_chain(tmp_path, "module", chain[1])
    assert load_chain(tmp_path, "module").state_dict().keys() == chain[1].state_dict().keys()


def test_a_description_names_the_shared_part() -> None:
    described = describe(circuit())
    assert described["shared"]["leaf"].endswith(":Latents")
    assert described["shared"]["counts"] == [3, 5, 2]
    assert isinstance(rebuild(described).shared_part, Latents)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(5)))
def test_the_order_of_mediators_does_not_matter(order: list[int]) -> None:
    chain = circuit().eval()
    logits = chain(images())
    group = latents(chain).mediator
    with torch.no_grad():
        group.codes.copy_(group.codes[order])
        group.signatures.copy_(group.signatures[order])
    torch.testing.assert_close(chain(images()), logits, atol=1e-4, rtol=1e-4)


def test_draws_belong_to_samples_and_evaluation_draws_nothing() -> None:
    chain = circuit(drop_path=0.3).train()
    x, key = images(4), Key.of(3)
    together = chain(x, Pass(key, torch.arange(4)))
    apart = torch.cat([chain(x[i : i + 1], Pass(key, torch.tensor([i]))) for i in range(4)])
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(chain(x, Pass(Key.of(4), torch.arange(4))), together)
    chain.eval()
    assert torch.equal(chain(x, Pass(key, torch.arange(4))), chain(x))


def test_evaluation_draws_by_the_named_quirk_alone() -> None:
    plain, noisy = circuit().eval(), circuit(quirk_eval_noise=True).eval()
    noisy.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(images()), noisy(images()))
    assert torch.equal(noisy(images()), noisy(images()))


def test_shared_weights_are_one_module_that_repeats() -> None:
    once, shared = circuit(iterations=1), circuit(iterations=3, share_weights=True)
    assert (len(shared), shared.depths) == (3, (1, 1, 1))
    assert parameter_count(shared) == parameter_count(once)
    shared.load_state_dict(once.state_dict())
    assert not torch.allclose(shared.eval()(images()), once.eval()(images()))


def test_signatures_learn_from_the_loss_and_from_their_repulsion() -> None:
    chain = circuit(truncation=None, stochastic=False, repulsion=[0.5, 0.1]).train()
    ctx = Pass(progress=0.5)
    chain(images(), ctx).sum().backward(retain_graph=True)
    groups = [getattr(latents(chain), role) for role in ("input", "mediator", "output")]
    assert all(group.signatures.grad.abs().sum() > 0 for group in groups)
    first, last = Pass(), Pass(progress=1.0)
    chain(images(), first)
    chain(images(), last)
    pushed = [float(c.losses["signatures"].detach()) for c in (first, ctx, last)]
    assert pushed == pytest.approx([pushed[0], 0.6 * pushed[0], 0.2 * pushed[0]])
    evaluated = Pass()
    assert not chain.eval()(images(), evaluated).isnan().any()
    assert evaluated.losses == {}


def test_what_decays_and_what_muon_takes() -> None:
    chain = circuit(seeds="learned")
    kept = {name for name, p in trainable(chain).items() if p.ndim > 1 and not decays(name, p)}
    roles = ("input", "mediator", "output")
    assert kept == {"0.tokenizer.grid"} | {f"shared.{r}.{w}" for r in roles for w in ("codes", "signatures", "states")}
    declared = declared_matrices(chain)
    assert {"2.attention.query.weight", "3.ffn.fc1.scale.weight"} <= declared.keys()
    assert all(trainable(chain)[name].ndim == 2 for name in declared)


def test_every_propagator_drops_paths_at_one_rate() -> None:
    chain = circuit(iterations=3)
    set_drop_path(chain, 0.2)
    assert [leaf.drop_path for leaf in chain.leaves if hasattr(leaf, "drop_path")] == [0.2] * 3
    one = student(chain, 1, 12)
    set_drop_path(one, 0.2)
    assert one.leaves[0].drop_path == 0.2


def test_first_signatures_draw_the_graph() -> None:
    with Key.of(0, "prior").forked():
        drawn = prior(Graph(name="ring-of-cliques", groups=4, steps=200, lr=0.02), 16, 8)
        noise = torch.randn(16, 8)
    links = adjacency(graph("ring-of-cliques", 0, num_cliques=4, clique_size=4))
    assert score(drawn, links) < 0.05 < score(noise, links)


def test_sizes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(RequestError, match="too small"):
        circuit(stem_patch=8)
    with pytest.raises(ValueError, match="do not divide into groups 3"):
        MODELS.read({**SMALL, "graph": {"name": "planted-partition", "groups": 3}})
    with pytest.raises(RequestError, match="share_weights: false"):
        student(circuit(share_weights=True), 1, 12)
    with pytest.raises(RequestError, match="pooling: slot"):
        student(circuit(pooling="slot"), -1, 12)


@pytest.mark.parametrize("graph", ["scale-free", "ring-of-cliques", "planted-partition", "erdos-renyi", "complete"])
@pytest.mark.parametrize("name", ["nac", "nac-tiny-imagenet", "nac-imagenet"])
def test_the_smoke_size_has_the_same_modules(name: str, graph: str) -> None:
    full = MODELS.read({"name": name, "graph": {"name": graph}})
    smoke = MODELS.get(name).smoke
    assert smoke is not None
    small: Any = smoke(full, 8)
    chain = nac(small, Port.of("image", channels=1, size=8), 3)
    assert len(chain) == full.modules == small.modules
    assert parameter_count(chain) < 500_000


def test_students_that_do_not_fit_are_refused_whole() -> None:
    network, source = circuit(), circuit(1, capacity=1.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RequestError, match=r"leaf 1 \(ReadIn\) cannot be loaded: ffn"):
        transplant([student(source, i, 8) for i in range(len(source))], network)
    with pytest.raises(RequestError, match="6 taught leaves do not fill a circuit of 7"):
        transplant([student(network, i, 8) for i in range(len(network))], circuit(iterations=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_other_classes_leave_the_head_as_it_was() -> None:
    network, source = circuit(), circuit(1)
    students = [student(source, i, 8) for i in range(len(source))]
    read_out, head = students[-1].leaves
    students[-1] = Chain([read_out, PoolingHead(**{**head.arguments, "classes": 7})])
    report = transplant(students, network)
    assert "5.pooling.to_logits.weight" in report.left
    assert "0.tokenizer.grid" in report.loaded


def test_the_block_models_term_is_the_regulariser_of_each_propagators_links() -> None:
    graph_of = {"name": "planted-partition", "groups": 2, "p_in": 0.9, "p_out": 0.2, "steps": 1}
    chain = circuit(mediators=6, blocks=0.5, repulsion=0.0, graph=graph_of, stochastic=False)
    ctx = Pass(Key.of(0), torch.arange(2))
    chain.train()(images(), ctx)
    assert sorted(ctx.losses) == ["blocks/0", "blocks/1"]
    shared: Any = chain.shared_part
    z = shared.mediator.signatures
    leaf: Any = chain.leaves[2]
    expected = 0.5 * block_model(leaf.kernel.log(z, z).exp(), block_target(6, 2, 0.9, 0.2))
    torch.testing.assert_close(ctx.losses["blocks/0"], expected)
    ctx.losses["blocks/0"].backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    quiet = Pass()
    chain.eval()(images(), quiet)
    assert not quiet.losses
    with pytest.raises(ValidationError, match="has none"):
        MODELS.read({**SMALL, "blocks": 1.0})


def test_the_references_start_of_the_read_in_student() -> None:
    for quirk, expected in ((False, 0.1), (True, 1e-6)):
        with Key.of(0, "circuit").forked():
            chain = nac(MODELS.read({**SMALL, "quirk_student_scale": quirk}), Port.of("image", channels=1, size=8), 3)
            starts = [float(student(chain, i, 8).state_dict()["1.ffn.gamma"][0]) for i in (0,)]
            middle = float(student(chain, 1, 8).state_dict()["0.ffn.gamma"][0])
        assert starts == [pytest.approx(expected)]
        assert middle == pytest.approx(0.1)
        assert float(chain.state_dict()["1.ffn.gamma"][0]) == pytest.approx(0.1), "the circuit's own is as ever"
