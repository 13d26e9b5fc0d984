"""Checks of the golden cases of V-MoE and fastmoe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modnet.chain import Pass
from modnet.layers import balance
from modnet.layers.dispatch import expert_choice_plan, plan
from modnet.layers.moe import MoE, capacity_of
from modnet.layers.routers import ExpertChoiceGate, Gate
from modnet.registry import ROUTERS

GRADIENT_TOLERANCE = 1e-4


def gate_of(width: int, experts: int, top_k: int, **router: Any) -> Gate:
    params = ROUTERS.read(router)
    gate: Gate = ROUTERS.get(params.name).resolve()(width, experts, top_k, params)
    return gate


def load(parameter: Tensor, tensor: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(tensor)


def check_reference_tests(case: Any) -> None:
    config, gates = case.config, case.given("gates")
    case.expect("gshard", balance.switch(gates, gates.argmax(-1, keepdim=True)))
    case.expect("importance", balance.importance(gates))
    clean = case.given("load_logits")
    noisy = clean + case.given("load_noise")
    case.expect("load", balance.load(clean, noisy, config["load_noise_std"], config["load_k"]))
    slot_gates = case.given("slot_gates")
    weights, indices = slot_gates.topk(config["slots_k"], dim=-1)
    for name, order in (("vanilla", "choice-major"), ("bpr", "batch-priority")):
        found = plan(indices, slot_gates.shape[1], config["slots_capacity"], as_order(order), weights[:, 0])
        assert found.slots is not None
        case.expect(f"slots_{name}", torch.stack([indices, found.slots], -1).to(case.tensors[f"out.slots_{name}"]))


def as_order(order: str) -> Any:
    return order


def check_dispatch(case: Any) -> None:
    config, gates = case.config, case.given("gates")
    experts, capacity = config["num_experts"], config["capacity"]
    weights, indices = gates.topk(config["num_selected_experts"], dim=-1)
    for name, order in (("vanilla", "choice-major"), ("bpr", "batch-priority")):
        found = plan(indices, experts, capacity, as_order(order), weights[:, 0])
        assert found.slots is not None
        assert found.kept is not None
        case.expect(f"{name}.expert", indices.to(case.tensors[f"out.{name}.expert"]))
        case.expect(f"{name}.slot", found.slots.to(case.tensors[f"out.{name}.slot"]))
        case.expect(f"{name}.combine_weights", weights)
        dense = torch.zeros(len(gates), experts, capacity)
        tokens, choices = found.kept.nonzero(as_tuple=True)
        at = (tokens, indices[tokens, choices], found.slots[tokens, choices])
        dense[at] = weights[tokens, choices]
        case.expect(f"{name}.combine_dense", dense)
    check_expert_choice(case, gates, config["expert_choice_capacity"])
    rounding = config["compute_capacity"]
    for key, expected in rounding["values"].items():
        factor, multiple = key.split("/")
        pairs = rounding["num_tokens"]  # the published function is given tokens times choices
        assert capacity_of(pairs, rounding["num_experts"], float(factor), int(multiple)) == expected, key


def check_expert_choice(case: Any, gates: Tensor, capacity: int) -> None:
    gate = gate_of(1, gates.shape[1], 1, name="expert-choice")
    assert isinstance(gate, ExpertChoiceGate)
    logits = gates.log()  # whose softmax is the gates again
    tokens, weights = gate.taken(gate.choose(logits, logits, 0.0), capacity)
    dense = torch.zeros(len(gates), gates.shape[1], capacity)
    experts, slots = torch.meshgrid(torch.arange(gates.shape[1]), torch.arange(capacity), indexing="ij")
    dense[tokens, experts, slots] = weights
    case.expect("expert_choice.combine_dense", dense)
    each = torch.bincount(expert_choice_plan(tokens).tokens, minlength=len(gates))
    prefix = "expert_choice"
    for name, value in (("min", each.min()), ("max", each.max())):
        key = f"{prefix}.num_experts_per_item_{name}"
        case.expect(key, value.to(case.tensors[f"out.{key}"]))
    case.expect(f"{prefix}.min_selected_gate", weights.min())
    case.expect(f"{prefix}.max_selected_gate", weights.max())
    start = f"{prefix}.ratio_processed_items_by_at_least_"
    for name in [k.removeprefix("out.") for k in sorted(case.waiting) if k.startswith(f"out.{start}")]:
        least = int(name.removeprefix(start).partition("_")[0])
        case.expect(name, (each >= least).float().mean())


def check_router(case: Any) -> None:
    config = case.config
    names = ("gshard", "importance", "load")
    weights = {name: config[f"{name}_loss_weight"] for name in names}
    gate = gate_of(
        config["width"],
        config["num_experts"],
        config["num_selected_experts"],
        name="softmax-top-k",
        noise=config["noise_std"],
        **weights,
    )
    load(gate.gate.weight, case.tensors["state.router"].T)
    x = case.given("x").clone().requires_grad_()
    total = torch.zeros(())
    found: dict[str, list[Tensor]] = {}
    for tokens, eps in zip(x, case.given("eps"), strict=True):
        choice, quiet = gate(tokens, eps), gate(tokens)
        loss, calm = gate.loss(choice), gate.loss(quiet)
        assert loss is not None
        assert calm is not None
        values = {
            "probs_noisy": choice.noisy.softmax(-1),
            "probs_clean": choice.probs,
            "importance_loss": gate.importance(choice),
            "load_loss": balance.load(choice.logits, choice.noisy, float(choice.std), gate.top_k),
            "gshard_loss": balance.switch(choice.noisy.softmax(-1), choice.noisy.argmax(-1, keepdim=True)),
            "auxiliary_loss": loss,
            "eval_gshard_loss": balance.switch(quiet.probs, quiet.probs.argmax(-1, keepdim=True)),
            "eval_auxiliary_loss": calm,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
        total = total + loss / config["groups"]
    for name, groups in found.items():
        case.expect(name, torch.stack(groups))
    together = gate.loss(gate(x.flatten(0, 1), case.given("eps").flatten(0, 1)), config["group_size"])
    assert together is not None
    torch.testing.assert_close(together, total)
    total.backward()
    assert gate.gate.weight.grad is not None
    case.expect("grad.router", gate.gate.weight.grad.T, GRADIENT_TOLERANCE)
    case.expect("grad.x", x.grad, GRADIENT_TOLERANCE)


def vmoe_layer(case: Any) -> MoE:
    config = case.config
    assert config["activation"] == "gelu (tanh form)"
    router = {
        "name": "softmax-top-k",
        "noise": config["noise_std"],
        "capacity": config["capacity_factor"],
        "round_to": config["capacity_multiple_of"],
        "order": "batch-priority" if config["batch_priority"] else "choice-major",
        "group": 1,
        "importance": config["importance_loss_weight"],
        "load": config["load_loss_weight"],
    }
    sizes = (config["width"], config["mlp_dim"], config["num_experts"], config["num_selected_experts"])
    layer = MoE(*sizes, router, "gelu-tanh").train()
    state = case.under("state.")
    load(layer.gate.gate.weight, state["Router.dense.kernel"].T)
    for ours, theirs in ((layer.experts.fc1, "Dense_0"), (layer.experts.fc2, "Dense_1")):
        load(ours.weight, state[f"Mlp.{theirs}.kernel"].mT)
        load(ours.bias, state[f"Mlp.{theirs}.bias"])
    return layer


def check_vmoe_layer(case: Any) -> None:
    layer, config = vmoe_layer(case), case.config
    x = case.given("x").clone().requires_grad_()
    eps = case.given("eps")
    layer.noise = lambda x, ctx: eps.flatten(0, 1)  # type: ignore[method-assign]
    assert layer.capacity(config["group_size"]) == config["capacity"]
    ctx = Pass()
    out = layer(x, ctx)
    case.expect("output", out)
    pairs = eps.shape[0] * eps.shape[1] * layer.top_k
    assert round(ctx.stats["0.dropped"].item() * pairs) == config["dropped_pairs"]
    groups = [layer.gate.loss(layer.gate(tokens, noise)) for tokens, noise in zip(x, eps, strict=True)]
    case.expect("auxiliary_loss", torch.stack([loss for loss in groups if loss is not None]))
    ((out * case.given("cotangent")).sum() + ctx.losses["0.router"]).backward()
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    case.expect("grad.x", x.grad, GRADIENT_TOLERANCE)
    case.expect("grad.Router.dense.kernel", grads["gate.gate.weight"].T, GRADIENT_TOLERANCE)
    for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        case.expect(f"grad.Mlp.{theirs}.kernel", grads[f"experts.{ours}.weight"].mT, GRADIENT_TOLERANCE)
        case.expect(f"grad.Mlp.{theirs}.bias", grads[f"experts.{ours}.bias"], GRADIENT_TOLERANCE)


def check_naive_gate(case: Any) -> None:
    config = case.config
    gate = gate_of(
        config["d_model"], config["num_expert"], config["top_k"], name="top-k-softmax", bias=config["gate_bias"]
    )
    gate.load_state_dict(case.under("state."))
    x = case.given("x").clone().requires_grad_()
    choice = gate(x)
    case.expect("logits", choice.logits)
    case.expect("topk_indices", choice.indices.to(case.tensors["out.topk_indices"]))
    case.expect("weights", choice.weights)
    (choice.weights * case.given("cotangent")).sum().backward()
    case.expect("grad.x", x.grad)
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None
        case.expect(f"grad.{name}", parameter.grad)


def check_noisy_gate(case: Any) -> None:
    config = case.config
    gate: Any = gate_of(config["d_model"], config["num_expert"], config["top_k"], name="noisy-top-k")
    load(gate.gate.weight, case.tensors["state.w_gate"].T)
    load(gate.spread.weight, case.tensors["state.w_noise"].T)
    x = case.given("x").clone().requires_grad_()
    choice = gate(x, case.given("eps"))
    case.expect("topk_indices", choice.indices.to(case.tensors["out.topk_indices"]))
    case.expect("weights", choice.weights)
    loss = gate.loss(choice)
    case.expect("loss", loss)
    loss.backward()
    case.expect("grad.x", x.grad, GRADIENT_TOLERANCE)
    case.expect("grad.w_gate", gate.gate.weight.grad.T, GRADIENT_TOLERANCE)
    case.expect("grad.w_noise", gate.spread.weight.grad.T, GRADIENT_TOLERANCE)


def check_fastmoe_layer(case: Any) -> None:
    config = case.config
    assert config["activation"] == "gelu (exact)"
    layer = MoE(
        config["d_model"], config["d_hidden"], config["num_expert"], config["top_k"], {"name": "top-k-softmax"}
    ).eval()
    state = case.under("state.")
    load(layer.gate.gate.weight, state["gate.gate.weight"])
    assert layer.gate.gate.bias is not None
    load(layer.gate.gate.bias, state["gate.gate.bias"])
    for ours, theirs in ((layer.experts.fc1, "htoh4"), (layer.experts.fc2, "h4toh")):
        for part in ("weight", "bias"):
            stack = torch.cat([state[f"experts.{e}.{theirs}.{part}"] for e in range(layer.count)])
            load(getattr(ours, part), stack)
    x = case.given("x")
    case.expect("output", layer(x[None], Pass())[0])
    every = torch.arange(layer.count).expand(len(x), -1)
    where = plan(every, layer.count)
    assert where.rows is not None
    given = layer.experts(x[where.tokens], where.ends)
    case.expect("expert_outputs", given[where.rows])


CHECKS = {
    "vmoe_reference_tests": check_reference_tests,
    "vmoe_dispatch": check_dispatch,
    "vmoe_router": check_router,
    "vmoe_layer": check_vmoe_layer,
    "fastmoe_naive_gate": check_naive_gate,
    "fastmoe_noisy_gate": check_noisy_gate,
    "fastmoe_layer": check_fastmoe_layer,
}
