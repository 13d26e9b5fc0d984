"""Checks of the golden cases of ModuleFormer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modnet.chain import Chain, Pass, Port
from modnet.layers.dispatch import combine, dispatch, plan
from modnet.layers.expert_attention import ExpertAttention
from modnet.layers.moduleformer import ModuleFormerBlock
from modnet.layers.moe import MoE
from modnet.layers.routers import Choice, Gate
from modnet.layers.stickbreaking import attend, stick_breaking
from modnet.models.moduleformer import moduleformer
from modnet.recipe.moduleformer import ModuleFormer
from modnet.registry import ROUTERS

GRADIENT_TOLERANCE = 1e-4
Z_WEIGHT = 0.1  # what the published `switch` loss adds of the squared log-sum-exp
LOSSES: dict[str, dict[str, float]] = {"mi": {"mutual_information": 1.0}, "switch": {"switch": 1.0, "z": Z_WEIGHT}}
ROUTER = {"mlp": "perceptron", "gmm": "centroids", "linear": "softmax-top-k"}
NAMES = (  # of the reference's tensors and ours, in order
    (r"^transformer\.wte\.", "0.table."),
    (r"^transformer\.ln_f\.", "HEAD.norm."),
    (r"^lm_head\.", "HEAD.head."),
    (r"^transformer\.h\.(\d+)\.", lambda m: f"{int(m[1]) + 1}."),
    (r"ln_1\.", "norm1."),
    (r"ln_2\.", "norm2."),
    (r"attn\.([kv])_proj\.", lambda m: {"k": "attn.key.", "v": "attn.value."}[m[1]]),
    (r"attn\.q_proj\.output_experts\.", "attn.out."),
    (r"attn\.q_proj\.experts\.", "attn.query."),
    (r"attn\.q_proj\.gate\.", "attn.gate."),
    (r"mlpf\.output_experts\.", "moe.experts.fc2."),
    (r"mlpf\.experts\.", "moe.experts.fc1."),
    (r"mlpf\.gate\.", "moe.gate."),
)


def ours(name: str, kind: str) -> str:
    """The name of one of the reference's tensors in our modules, whose routers are of a kind."""
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    return in_gate(name, kind)


def in_gate(name: str, kind: str) -> str:
    """The name with its router's part replaced, if it has one."""
    return re.sub(r"(^|\.)gate\.(.+)$", lambda m: f"{m[1]}gate.{gate_name(kind)(m[2])}", name)


def turned(name: str, tensor: Tensor) -> Tensor:
    """Experts' weights are (E, in, out) there and (E, out, in) here."""
    return tensor.mT if tensor.ndim == 3 and name.endswith("weight") else tensor


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    module.load_state_dict({name: turned(name, tensor) for name, tensor in state.items()})


def expect_gradients(case: Any, named: dict[str, Tensor], rename: Callable[[str], str]) -> None:
    """Every gradient that the case holds, by our names."""
    for key in [k for k in sorted(case.waiting) if k.startswith("out.grad.")]:
        name = key.removeprefix("out.grad.")
        grad = named[rename(name)].grad
        assert grad is not None, name
        case.expect(f"grad.{name}", turned(name, grad), GRADIENT_TOLERANCE)


def check_stickbreaking(case: Any) -> None:
    q, k, v = (case.given(name).clone().requires_grad_() for name in "qkv")
    keep = case.tensors.get("in.keep_mask")
    weights, output = stick_breaking(q, k, keep), attend(q, k, v, keep)
    case.expect("attention", weights)
    case.expect("row_mass", weights.sum(-1))
    case.expect("output", output)
    (output * case.given("cotangent")).sum().backward()
    expect_gradients(case, {"q": q, "k": k, "v": v}, str)


def router_of(config: dict[str, Any]) -> dict[str, Any]:
    kind = config["gate_type"]
    sizes = {} if kind == "linear" else {"hidden": config["gating_size"]}
    return {"name": ROUTER[kind], **sizes, **LOSSES[config.get("aux_loss") or config["aux_loss_type"]]}


def gate_name(kind: str) -> Any:
    """Our names of a single gate's tensors."""
    renamed = {
        "linear": {"w_gate.0.weight": "gate.weight"},
        "gmm": {"w_gate.weight": "inner.weight", "expert_centroids": "gate.weight", "temperature": "temperature"},
        "mlp": {"w_gate.0.weight": "inner.weight", "w_gate.0.bias": "inner.bias", "w_gate.3.weight": "gate.weight"},
    }[kind]
    return lambda name: renamed.get(name, name)


def check_router(case: Any) -> None:
    config = case.config
    params = ROUTERS.read(router_of(config))
    rename = gate_name(config["gate_type"])
    gate: Gate = ROUTERS.get(params.name).resolve()(
        config["input_size"], config["num_experts"], config["top_k"], params
    )
    load(gate, {rename(name): tensor for name, tensor in case.under("state.").items()})
    x = case.given("x").clone().requires_grad_()
    choice = gate(x)
    case.expect("probs", choice.probs)
    expect_choice(case, choice, config["num_experts"])
    loss = gate.loss(choice)
    assert loss is not None
    case.expect("loss", loss)
    loss.backward()
    expect_gradients(case, {"x": x, **dict(gate.named_parameters())}, rename)


def expect_choice(case: Any, choice: Choice, experts: int) -> None:
    """Chosen experts and their weights; the published order of equals is not asked for."""
    for name, value in (("topk_indices", choice.indices), ("topk_gates", choice.weights)):
        if f"out.{name}" in case.waiting:
            case.expect(name, value.to(case.tensors[f"out.{name}"].dtype))
    if "out.expert_counts" in case.waiting:
        counts = torch.bincount(choice.indices.flatten(), minlength=experts)
        case.expect("expert_counts", counts.to(case.tensors["out.expert_counts"].dtype))


def check_moe(case: Any) -> None:
    config = case.config
    activation = "gelu-tanh" if config["activation"] == "gelu_new" else "gelu"
    shape = (config["input_size"], config["head_size"], config["num_experts"], config["top_k"])
    moe = MoE(*shape, router_of(config), activation, config["bias"])  # type: ignore[arg-type]
    renames = {"experts.": "experts.fc1.", "output_experts.": "experts.fc2."}

    def rename(name: str) -> str:
        found = next((name.replace(old, new, 1) for old, new in renames.items() if name.startswith(old)), name)
        return in_gate(found, config["gate_type"])

    load(moe, {rename(name): tensor for name, tensor in case.under("state.").items()})
    x, ctx = case.given("x").clone().requires_grad_(), Pass()
    output = moe.train()(x, ctx)
    (loss,) = ctx.losses.values()
    case.expect("output", output)
    case.expect("loss", loss)
    ((output * case.given("cotangent")).sum() + loss).backward()
    expect_gradients(case, {"x": x, **dict(moe.named_parameters())}, rename)
    check_map_and_reduce(case, moe, x.detach().flatten(0, 1))


@torch.no_grad()
def check_map_and_reduce(case: Any, moe: MoE, x: Tensor) -> None:
    """The published `map` and `reduce`: one layer of each chosen expert, and the way back."""
    choice = moe.gate(x)
    expect_choice(case, choice, moe.count)
    where = plan(choice.indices, moe.count)
    assert where.rows is not None
    assert where.pairs is not None
    mapped = moe.experts.fc1(dispatch(x, where), where.ends)[where.rows]
    case.expect("mapped", mapped)
    given = moe.experts.fc2(mapped.flatten(0, 1)[where.pairs], where.ends)
    case.expect("reduced", combine(given, choice.weights, where, len(x)))
    case.expect("reduced_ungated", combine(given, torch.ones_like(choice.weights), where, len(x)))


def block_of(config: dict[str, Any]) -> ModuleFormerBlock:
    router = router_of(config)
    return ModuleFormerBlock(
        config["n_embd"],
        config["att_hidden"],
        config["n_head"],
        config["n_att_experts"],
        config["k_att"],
        router,
        config["ffd_hidden"],
        config["n_mlp_experts"],
        config["k_mlp"],
        router,
    )


def check_block(case: Any) -> None:
    block, kind = block_of(case.config), case.config["gate_type"]
    load(block, {ours(name, kind): tensor for name, tensor in case.under("state.").items()})
    x, ctx = case.given("x").clone().requires_grad_(), Pass()
    output, (keys, values) = block.train().step(x, ctx)
    loss = torch.stack(list(ctx.losses.values())).sum()
    case.expect("output", output)
    case.expect("aux_loss", loss)
    case.expect("keys", keys)
    case.expect("values", values)
    ((output * case.given("cotangent")).sum() + loss).backward()
    expect_gradients(case, {"x": x, **dict(block.named_parameters())}, lambda name: ours(name, kind))
    with torch.no_grad():
        check_inside(case, block.eval(), x, keys)


def check_inside(case: Any, block: ModuleFormerBlock, x: Tensor, keys: Tensor) -> None:
    """Probabilities of both routers, attention weights, and the last positions behind a cache."""
    attention: ExpertAttention = block.attn
    flat = block.norm1(x).flatten(0, 1)
    choice, where = attention.route(flat)
    q = attention.queries(flat, where).unflatten(0, x.shape[:2])
    case.expect("att_probs", choice.probs)
    case.expect("attention", stick_breaking(q, keys))
    middle = x + attention(block.norm1(x), Pass())
    case.expect("mlp_probs", block.moe.gate(block.norm2(middle).flatten(0, 1)).probs)
    tail = case.tensors["out.cached_tail"].shape[1]
    _, history = block.step(x[:, :-tail], Pass())
    case.expect("cached_tail", block.step(x[:, -tail:], Pass(), history)[0])


def network_of(config: dict[str, Any], length: int) -> Chain:
    params = ModuleFormer(
        width=config["n_embd"],
        depths=(1,) * config["n_layer"],
        attention_hidden=config["att_hidden"],
        heads=config["n_head"],
        attention_experts=config["n_att_experts"],
        attention_top_k=config["k_att"],
        hidden=config["ffd_hidden"],
        experts=config["n_mlp_experts"],
        top_k=config["k_mlp"],
        router=ROUTERS.read(router_of(config)),
    )
    return moduleformer(params, Port.of("ids", vocab=config["vocab_size"], length=length), config["vocab_size"])


def check_model(case: Any) -> None:
    config, ids, labels = case.config, case.given("input_ids"), case.given("labels")
    chain = network_of(config, ids.shape[1])
    last = str(len(chain.leaves) - 1)

    def rename(name: str) -> str:
        return ours(name, config["gate_type"]).replace("HEAD", last)

    load(chain, {rename(name): tensor for name, tensor in case.under("state.").items()})
    ctx = Pass(wanted=frozenset(range(1, config["n_layer"] + 1)))
    logits = chain.train()(ids, ctx)
    case.expect("logits", logits)
    losses = [sum(v for k, v in ctx.losses.items() if k.startswith(f"{i}.")) for i in range(1, config["n_layer"] + 1)]
    for i, loss in enumerate(losses):
        case.expect(f"hidden.{i}", ctx.taps[i + 1])
        assert isinstance(loss, Tensor)
        case.expect(f"layer_aux.{i}", loss)
    aux = torch.stack(list(ctx.losses.values())).sum()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) + config["aux_loss_weight"] * aux
    case.expect("aux_loss", aux)
    case.expect("loss", total)
    total.backward()
    expect_gradients(case, dict(chain.named_parameters()), rename)


CHECKS = {
    "moduleformer_stickbreaking": check_stickbreaking,
    "moduleformer_router": check_router,
    "moduleformer_moe": check_moe,
    "moduleformer_block": check_block,
    "moduleformer_model": check_model,
}
