"""Checks of the golden cases of EMoE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modnet.chain import Pass
from modnet.layers import balance
from modnet.layers.dispatch import plan
from modnet.layers.mlp import MLP
from modnet.layers.moe import MoE, tutel_capacity
from modnet.layers.routers import normalised
from modnet.randomness import Key
from modnet.surgery.splitting import balanced_clusters, divide, inertia, units_of
from tests.golden_routing import as_order, gate_of, load


def like(case: Any, name: str, value: Tensor) -> None:
    """Compare whole numbers, in the type in which they were stored."""
    case.expect(name, value.to(case.tensors[f"out.{name}"]))


def check_clustering(case: Any) -> None:
    config, keys = case.config, case.given("keys")
    labels = balanced_clusters(keys, config["n_expert"], Key.of(0))
    sizes = labels.bincount(minlength=config["n_expert"])
    points = F.normalize(keys.double(), dim=1).numpy()
    for suffix in ("", "_parallel"):
        theirs = case.tensors[f"out.labels{suffix}"]
        assert torch.equal(theirs.long().bincount(minlength=config["n_expert"]), sizes)
        found = inertia(points, theirs.long().numpy())
        case.expect(f"inertia{suffix}", torch.tensor(found))
        case.waiting.discard(f"out.labels{suffix}")  # numbers of clusters are arbitrary, and optima several
    worst = max(float(case.tensors[f"out.inertia{suffix}"]) for suffix in ("", "_parallel"))
    assert inertia(points, labels.numpy()) <= worst + case.tolerance


def check_llama(case: Any) -> None:
    config, state = case.config, case.under("state.")
    experts, top_k, labels, x = config["n_expert"], config["topk"], case.given("labels").long(), case.given("x")
    order = units_of(labels, experts)
    gate, up, down = (state[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    for name, weight in (("gate", gate[order]), ("up", up[order])):
        assert torch.equal(weight.flatten(0, 1), case.tensors[f"out.{name}_proj"])
        case.expect(f"{name}_proj", weight.flatten(0, 1))
    case.expect("down_proj", down[:, order.flatten()], 0)
    for k, name in ((top_k, "output"), (experts, "output_all_experts")):
        layer = MoE(x.shape[-1], order.shape[1], experts, k, {"name": "avg-k"}, "swiglu").eval()
        assert layer.experts.up is not None
        for stack, weight in (
            (layer.experts.fc1, gate[order]),
            (layer.experts.up, up[order]),
            (layer.experts.fc2, down.T[order].mT),
        ):
            load(stack.weight, weight)
        case.expect(name, layer(x, Pass()))
        choice = layer.gate(x.flatten(0, 1), None, layer.experts.fc1.weight)
        case.expect("expert_scores", choice.logits)
        if k == top_k:
            like(case, "topk_indices", choice.indices)
    case.expect("output_dense", F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))


def dense_mlp(case: Any) -> MLP:
    mlp, state = MLP(case.config["model_dim"], case.config["hidden"]), case.under("state.")
    for layer, name in ((mlp.fc1, "intermediate"), (mlp.fc2, "output")):
        load(layer.weight, state[f"{name}.dense.weight"])
        load(layer.bias, state[f"{name}.dense.bias"])
    return mlp


def split_layer(case: Any, mlp: MLP) -> MoE:
    config, state = case.config, case.under("state.")
    kind = {"top": "avg-k", "cosine_top": "cosine"}[config["gate_type"]]
    assert config["one_score"] == (kind == "avg-k")
    order = "batch-priority" if config["batch_prioritized_routing"] else "choice-major"
    router = {"name": kind, "order": order, "noise": config["gate_noise"], "importance": 0.5, "load": 0.5}
    router["quirk_load"] = True
    if config["capacity_factor"]:  # 0: as many places as are needed; below 0: so many, but no more than by the rule
        router |= {"capacity": abs(config["capacity_factor"]), "capacity_rule": "tutel"}
    if kind == "cosine":
        router["hidden"] = len(state["gate.sim_matrix"])
    experts = config["num_experts"]
    layer = MoE(config["model_dim"], config["hidden"] // experts, experts, config["top_k"], router).eval()
    divide(layer.experts, mlp, case.given("labels").long(), config["top_k"])
    gate: Any = layer.gate
    if kind == "cosine":
        load(gate.project.weight, state["gate.cosine_projector.weight"])
        load(gate.project.bias, state["gate.cosine_projector.bias"])
        load(gate.vectors, state["gate.sim_matrix"].T)
        load(gate.temperature, state["gate.temperature"])
    if config["capacity_factor"] > 0:
        assert layer.capacity(len(case.given("x"))) == config["capacity"]
    return layer


def check_split(case: Any) -> None:
    config, mlp, x = case.config, dense_mlp(case), case.given("x")
    layer = split_layer(case, mlp)
    experts = layer.experts
    case.expect("experts.fc1_w", experts.fc1.weight, 0)
    case.expect("experts.fc1_bias", experts.fc1.bias, 0)
    case.expect("experts.fc2_w", experts.fc2.weight.mT, 0)
    case.expect("experts.fc2_bias", experts.fc2.bias)
    if layer.gate.by_keys:
        case.expect("router_weight", experts.fc1.weight.mean(1))
    case.expect("output_dense", mlp(x))
    ctx = Pass()
    case.expect("output", layer(x[None], ctx))
    assert round(ctx.stats["0.dropped"].item() * len(x) * layer.top_k) == config["dropped_pairs"]
    choice = layer.gate(x, None, experts.fc1.weight)
    case.expect("router_logits", choice.logits)
    like(case, "topk_indices", choice.indices)
    case.expect("gates", choice.weights)
    scores = choice.probs.amax(-1)
    where = plan(choice.indices, layer.count, config["capacity"], as_order(layer.params.order), scores)
    assert where.slots is not None
    like(case, "locations", where.slots)
    loss = layer.gate.loss(replace(choice, std=config["gate_noise"] / config["num_experts"]))
    assert loss is not None
    case.expect("aux_loss", loss)


def check_tutel(case: Any) -> None:
    config, logits = case.config, case.given("logits")
    experts, top_k = config["num_experts"], config["top_k"]
    probs = logits.softmax(-1)
    weights, indices = probs.topk(top_k, dim=-1)
    case.expect("gates.raw", weights)
    case.expect("gates.normalised", normalised(weights))
    case.expect("gates.one", torch.ones_like(weights))
    for name, order in (("vanilla", "choice-major"), ("bpr", "batch-priority")):
        where = plan(indices, experts, len(logits), as_order(order), probs.amax(-1))
        assert where.slots is not None
        like(case, f"{name}.indices", indices)
        like(case, f"{name}.locations", where.slots)
    case.expect("gshard_loss", balance.switch(probs, indices[:, :1]))
    std = config["gate_noise"] / experts
    noisy = logits + std * case.given("noise")
    case.expect("load_per_expert", balance.chances(probs, noisy, std, top_k).sum(0))
    for factor, places in config["capacities"].items():
        if float(factor) > 0:
            assert tutel_capacity(len(logits), top_k, experts, float(factor)) == places
    gate = gate_of(1, experts, top_k, name="avg-k", noise=1.0, importance=0.5, load=0.5, quirk_load=True)
    assert isinstance(gate, nn.Module)
    found = gate.loss(gate.choose(logits, noisy, std))
    assert found is not None
    case.expect("load_importance_loss", found)


CHECKS = {
    "emoe_clustering": check_clustering,
    "emoe_llama": check_llama,
    "emoe_split": check_split,
    "emoe_tutel_routing": check_tutel,
}
