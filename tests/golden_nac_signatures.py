"""Checks of the golden cases of graph priors and regularisers of circuits; ``tests/test_golden.py`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor

from modnet.layers.nac import graphs, regularisers
from modnet.layers.nac.kernel import Kernel, distances

if TYPE_CHECKING:
    from tests.golden_case import Case

GRAPHS = {"barabasi-albert": "scale-free", "grid-graph": "grid"}
SIZED = ("watts-strogatz",)  # the number of nodes is that of the latents


def graph_of(case: Case, preset: str) -> Any:
    options = dict(case.config["presets"][preset])
    edges, _ = options.pop("edges"), options.pop("deterministic")
    if preset in SIZED:
        options["n"] = case.config["num_latents"]
    if preset == "barbell":
        options.setdefault("m2", 0)
    drawn = graphs.graph(GRAPHS.get(preset, preset), case.config["python_random_seed"], **options)
    assert drawn.number_of_edges() == edges
    return drawn


def check_graph_priors(case: Case) -> None:
    for key in sorted(case.waiting):
        _, what, preset = key.split(".")
        drawn = graph_of(case, preset)
        found = graphs.adjacency(drawn) if what == "adjacency" else graphs.path_lengths(drawn)
        case.expect(f"{what}.{preset}", found)


def check_graph_fit(case: Case) -> None:
    """A thousand Adam steps are no function of their start to this precision: there the fit's quality is compared."""
    c, links, initial = case.config, case.given("adjacency"), case.given("initial_signatures")
    case.expect("loss_initial", graphs.hinge_loss(initial, links, c["truncation"]))
    for steps in c["iterations"]:
        found = graphs.fit(initial, links, steps, c["learning_rate"], c["truncation"])
        exact = max(case.tolerance, 20 * c["observed_float64_difference"][str(steps)])
        drift = 10 * c["observed_sensitivity_to_1e-6_perturbation"][str(steps)] if steps > 100 else 0.0
        case.expect(f"signatures_after_{steps}", found, max(exact, drift))
        case.expect(f"loss_after_{steps}", graphs.hinge_loss(found, links, c["truncation"]), 1e-4)
        case.expect(f"score_after_{steps}", graphs.score(found, links, c["truncation"]))
    for key in [k for k in sorted(case.waiting) if k.startswith("out.mse_signatures_after_")]:
        steps = int(key.rpartition("_")[2])
        drawn = nx.from_numpy_array(links.numpy())
        found = graphs.fit(initial, graphs.path_lengths(drawn), steps, c["learning_rate"], loss="paths")
        case.expect(f"mse_signatures_after_{steps}", found, 1e-4)
        case.expect(f"mse_score_after_{steps}", mse_score(found, drawn))


def mse_score(signatures: Tensor, drawn: Any) -> Tensor:
    return (distances(signatures, signatures) - graphs.path_lengths(drawn)).square().mean()


GROUPS = ("input", "mediator", "output")


def signature_leaves(case: Case) -> dict[str, Tensor]:
    return {n: t.clone().requires_grad_() for n, t in case.under("state.").items() if n.startswith("latent_graphs")}


def signatures_in(leaves: Mapping[str, Tensor], groups: tuple[str, ...] = GROUPS) -> Tensor:
    return torch.cat([leaves[f"latent_graphs.0.{group}_latents.signatures_"] for group in groups])


def expect_loss(case: Case, loss: Tensor, leaves: Mapping[str, Tensor]) -> None:
    case.expect("loss", loss)
    wanted = [key.removeprefix("out.grad.") for key in sorted(case.waiting) if key.startswith("out.grad.")]
    found: Any = torch.autograd.grad(loss, [leaves[name] for name in wanted], allow_unused=True)
    for name, gradient in zip(wanted, found, strict=True):
        case.expect(f"grad.{name}", torch.zeros_like(leaves[name]) if gradient is None else gradient, 1e-4)


def check_repulsion(case: Case) -> None:
    leaves = signature_leaves(case)
    signatures = signatures_in(leaves)
    pairs = regularisers.lower(distances(signatures, signatures))
    assert len(pairs) == case.config["pairs"]
    assert int((pairs < case.config["hinge"]).sum()) == case.config["pairs_below_hinge"]
    expect_loss(case, regularisers.repulsion(signatures, case.config["hinge"], case.config["reduction"]), leaves)


def check_blocks(case: Case) -> None:
    c, leaves = case.config, signature_leaves(case)
    chosen = [g for g in GROUPS if g == "mediator" or c.get(f"regularize_{g}_latents", True)]
    signatures = signatures_in(leaves, tuple(chosen))
    target = regularisers.block_target(len(signatures), c["num_clusters"], c["p_in"], c["p_out"])
    if "out.target" in case.waiting:
        case.expect("target", target)
    learnable = c.get("learnable_bandwidth", True)
    loss = torch.zeros(())
    for i in range(c["num_iterations"] if learnable else 1):
        kernel = Kernel(c["truncation"], bandwidth=c.get("initial_bandwidth", 1.0), learnable=learnable)
        if learnable:
            name = f"latent_graphs.0.propagators.{i}.latent_attention.kernel.bandwidth"
            del kernel._parameters["bandwidth"]
            kernel.bandwidth = leaves[name]
        links = kernel.log(signatures, signatures).exp()
        if learnable:
            case.expect(f"link_probability.{i}", links)
        loss = loss + regularisers.block_model(links, target, c.get("clip"))
    expect_loss(case, loss, leaves)


def check_matching(case: Case) -> None:
    case.expect("permuted", regularisers.matched(case.given("input_adjacency"), case.given("target_graphon")))


def check_distribution(case: Case) -> None:
    leaves, state = signature_leaves(case), case.under("state.")
    parts = [state[f"component_{name}"][0] for name in ("means", "sigmas", "weights")]
    expect_loss(case, regularisers.mixture(signatures_in(leaves), *parts), leaves)


CHECKS: dict[str, Callable[[Case], None]] = {
    "nac_graph_priors": check_graph_priors,
    "nac_graph_fit": check_graph_fit,
    "nac_reg_hinge": check_repulsion,
    "nac_reg_sbm": check_blocks,
    "nac_reg_matching": check_matching,
    "nac_reg_distribution": check_distribution,
}
