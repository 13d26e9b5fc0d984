"""Checks of the golden cases of Neural Attentive Circuits; ``tests/test_golden.py`` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modnet.layers.nac.attention import LatentAttention, over_heads
from modnet.layers.nac.ffn import ModFFN
from modnet.layers.nac.kernel import Kernel, distances, normalised
from modnet.layers.nac.modulation import ModFC, PlainFC, WModFC
from modnet.layers.nac.noise import noisy
from modnet.layers.nac.pooling import OutputPooling
from modnet.layers.nac.read_in import ProjectionReadIn, ReadInAttention
from modnet.layers.nac.seeder import Seeder
from modnet.layers.nac.tokenizer import ConvNeXtTokenizer
from modnet.randomness import Key

if TYPE_CHECKING:
    from tests.golden_case import Case

GRADIENT_TOLERANCE = 1e-4
OURS = (
    (r"native_(weight|bias)", r"\1"),
    (r"scale_gain", "gain"),
    (r"(query|key|value)_compiler", r"\1"),
    (r"exit_layer", "exit"),
    (r"(receiver|sender)_layernorm", r"\1_norm"),
    (r"layer_scale\.gamma", "gamma"),
    (r"layernorm", "norm"),
    (r"(^|\.)ffn\.([02])\.", lambda m: f"{m[1]}{'fc1' if m[2] == '0' else 'fc2'}."),
    (r"read_in_attention", "attention"),
    (r"confidence_scorer", "confidence"),
    (r"^backbone\.downsample_layers\.", "downs."),
    (r"^backbone\.", ""),
    (r"dwconv", "depthwise"),
    (r"pwconv([12])", r"fc\1"),
    (r"positional_grid\.grid", "grid"),
    (r"^lin\.", "fc."),
    (r"^modulation\.", "scale."),
    (r"read_in_projection", "projection"),
    (r"code_to_state_mu", "mean"),
    (r"code_to_state_logvar", "log_variance"),
)


def ours(name: str) -> str:
    """Our name of a tensor of a layer that the reference calls ``name``."""
    for theirs, replacement in OURS:
        name = re.sub(theirs, replacement, name)
    return name


def load(layer: nn.Module, case: Case) -> None:
    state = {ours(name): tensor for name, tensor in case.under("state.").items()}
    layer.load_state_dict(state)
    layer.eval()


class Fixed(Key):
    """A key whose uniform draws are given."""

    def __init__(self, draws: Tensor) -> None:
        super().__init__(0)
        object.__setattr__(self, "draws", draws)

    def uniform(self, ids: Tensor, draws: int = 1) -> Tensor:
        given: Tensor = self.draws  # type: ignore[attr-defined]
        assert given.numel() == len(ids) * draws
        return given.reshape(len(ids), draws)


def gradients(case: Case, layer: nn.Module, result: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Every stored gradient of sum(result · cotangent); what plays no part in ours has a gradient of zero."""
    named = dict(layer.named_parameters())
    wanted = [key.removeprefix("out.grad.") for key in sorted(case.waiting) if key.startswith("out.grad.")]
    tensors = [inputs[name] if name in inputs else named[ours(name)] for name in wanted]
    loss = (result * case.given("cotangent")).sum()
    found: Any = torch.autograd.grad(loss, tensors, allow_unused=True)
    for name, grad, tensor in zip(wanted, found, tensors, strict=True):
        case.expect(f"grad.{name}", torch.zeros_like(tensor) if grad is None else grad, GRADIENT_TOLERANCE)


def given(case: Case, *names: str) -> dict[str, Tensor]:
    return {name: case.given(name).clone().requires_grad_() for name in names}


def modulation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our options of modulated layers from the reference's."""
    known = {"add_one_to_scale": "add_one", "learnable_scale_gain": "learnable_gain", "scale_gain": "gain"}
    found = {mine: config[theirs] for theirs, mine in known.items() if theirs in config}
    names = {"ln": "layer", "l2": "l2", "none": "none", None: "none", "sigmoid": "sigmoid", "tanh": "tanh"}
    if "scale_normalization_type" in config:
        found["norm"] = names[config["scale_normalization_type"]]
    if "scale_times_input_normalization_type" in config:
        found["input_norm"] = names[config["scale_times_input_normalization_type"]]
    if config.get("activation"):
        found["activation"] = config["activation"].lower()
    return found


def check_modfc(case: Case) -> None:
    config = case.config
    sizes = (config["in_features"], config["out_features"], config["context_features"])
    layer = ModFC(*sizes, config["bias"], **modulation(config))
    load(layer, case)
    inputs = given(case, "x", "code")
    result = layer(inputs["x"], inputs["code"])
    case.expect("output", result)
    case.expect("output4d", layer(case.given("x4d"), inputs["code"]))
    gradients(case, layer, result, inputs)


def check_alternative(case: Case) -> None:
    """``nac_fc`` ignores the code; ``nac_wmodfc`` modulates and demodulates the weight."""
    config = case.config
    plain = case.document["source"].endswith("/FC")
    takes, gives = config["in_features"], config["out_features"]
    layer: nn.Module = PlainFC(takes, gives) if plain else WModFC(takes, gives, config["context_features"])
    load(layer, case)
    case.expect("output", layer(case.given("x"), case.given("code")))


def check_ffn(case: Case) -> None:
    c = case.config
    layer = ModFFN(
        c["state_dim"],
        c["code_dim"],
        c["capacity_factor"],
        c["use_geglu"],
        c["layer_scale_initial_value"],
        modulation(c["mod_fc_kwargs"]),
    )
    assert layer.fc2.weight.shape[1] == c["hidden_dim"]
    assert c["include_residual"]
    load(layer, case)
    inputs = given(case, "x", "code")
    result = layer(inputs["x"], inputs["code"])
    case.expect("output", result)
    gradients(case, layer, result, inputs)


def kernel_of(options: Mapping[str, Any] | None) -> Kernel:
    """Our kernel from the reference's options; raises KeyError on one that is not known."""
    known = {
        "truncation": "truncation",
        "stochastic_kernel": "stochastic",
        "stochastic_sampling_temperature": "temperature",
        "initial_bandwidth": "bandwidth",
        "learnable_bandwidth": "learnable",
        "stochastic_eval_behaviour": "evaluation",
        "truncation_implementation": "implementation",
    }
    found = {known[name]: value for name, value in (options or {}).items()}
    if found.get("evaluation") == "no_sample":
        found["evaluation"] = "mean"
    return Kernel(**found)


def check_attention(case: Case) -> None:
    c = case.config
    kernel = kernel_of(c["kernel_kwargs"])
    layer = LatentAttention(
        c["state_dim"],
        c["code_dim"],
        c["num_heads"],
        c["head_dim"],
        qkv_bias=c["qkv_bias"],
        share_norm=c.get("share_layernorm", False),
        residual=c.get("include_residual", True),
        scale=c["layer_scale_initial_value"],
        mask_scores=c.get("mask_attn_scores_with_affinities", True),
        scale_weights=c.get("scale_attention_by_affinities_after_softmax", False),
        modulation=modulation(c["mod_fc_kwargs"]),
    )
    whole = nn.ModuleDict({"kernel": kernel, "layer": layer})
    state = {ours(name): tensor for name, tensor in case.under("state.").items()}
    whole.load_state_dict({n if n.startswith("kernel.") else f"layer.{n}": t for n, t in state.items()})
    drawn = "in.uniform" in case.tensors
    whole.train(drawn)
    sides = given(
        case, *(f"{side}_{what}" for side in ("receiver", "sender") for what in ("states", "signatures", "codes"))
    )
    receivers, senders = sides["receiver_signatures"], sides["sender_signatures"]
    key = Fixed(case.given("uniform")) if drawn else None
    log_kernel = kernel(receivers, senders, torch.arange(len(sides["receiver_states"])), key)
    case.expect("distance", distances(receivers, senders))
    case.expect("kernel", kernel.log(receivers, senders).exp())
    expect_logs(case, "log_kernel", log_kernel, drawn)
    expect_logs(case, "log_kernel_normalised", normalised(log_kernel), drawn)
    query, keys, _ = layer.projected(
        sides["receiver_states"], sides["receiver_codes"], sides["sender_states"], sides["sender_codes"]
    )
    case.expect("attention_weights", layer.weights(query, keys, log_kernel))
    assert over_heads(log_kernel).ndim == 4
    result = layer(
        sides["receiver_states"], sides["receiver_codes"], sides["sender_states"], sides["sender_codes"], log_kernel
    )
    case.expect("output", result)
    named = {f"kernel.{n}": p for n, p in kernel.named_parameters()}
    gradients(case, layer, result, {**sides, **named})


def expect_logs(case: Case, name: str, actual: Tensor, drawn: bool) -> None:
    """Logarithms; those of drawn values are compared as the values themselves."""
    if drawn:
        expected = case.tensors[f"out.{name}"]
        torch.testing.assert_close(actual.exp(), expected.exp(), atol=case.tolerance, rtol=case.tolerance)
        case.waiting.discard(f"out.{name}")
    else:
        case.expect(name, actual)


def check_read_in(case: Case) -> None:
    c = case.config
    layer = ReadInAttention(
        c["input_dim"],
        c["state_dim"],
        c["code_dim"],
        c["num_heads"],
        c["head_dim"],
        qkv_bias=c["qkv_bias"],
        residual=c["include_residual"],
        scale=c["layer_scale_initial_value"],
        modulation=modulation(c["mod_fc_kwargs"]),
    )
    load(layer, case)
    inputs = given(case, "receiver_states", "receiver_codes", "tokens")
    states, codes, tokens = inputs.values()
    case.expect("attention_weights", layer.weights(states, codes, layer.sender_norm(tokens)))
    result = layer(states, codes, tokens)
    case.expect("output", result)
    gradients(case, layer, result, inputs)


def check_read_in_block(case: Case) -> None:
    c = case.config
    options = modulation(c["mod_fc_kwargs"])
    attention = ReadInAttention(
        c["input_dim"],
        c["state_dim"],
        c["code_dim"],
        c["num_heads"],
        c["head_dim"],
        qkv_bias=c["qkv_bias_in_attention"],
        residual=c["include_residual_in_read_in_attention"],
        modulation=options,
    )
    scale = c["ffn_layer_scale_initial_value"]
    ffn = ModFFN(c["state_dim"], c["code_dim"], c["ffn_capacity_factor"], c["use_geglu"], scale, options)
    load(nn.ModuleDict({"attention": attention, "ffn": ffn}), case)
    states, codes = case.given("receiver_states"), case.given("receiver_codes")
    case.expect("output", ffn(attention(states, codes, case.given("tokens")), codes))


def check_projection(case: Case) -> None:
    c = case.config
    layer = ProjectionReadIn(
        c["input_dim"],
        c["state_dim"],
        c["code_dim"],
        c["ffn_capacity_factor"],
        c["use_geglu"],
        c["ffn_layer_scale_initial_value"],
        modulation(c["mod_fc_kwargs"]),
    )
    load(layer, case)
    case.expect("output", layer(case.given("receiver_codes"), case.given("tokens")))


def check_code_noise(case: Case) -> None:
    codes, alpha = case.given("codes"), case.config["alpha"]
    case.expect("codes_noisy", noisy(codes, alpha, Fixed(case.given("uniform"))))
    assert torch.equal(noisy(codes, alpha, None), codes)


def check_pooling(case: Case) -> None:
    c = case.config
    layer = OutputPooling(c["state_dim"], c["output_dim"], c["softmax_type"], c["softmax_temperature"])
    load(layer, case)
    states, noise = case.given("states"), case.tensors.get("in.gumbel")
    case.expect("confidences", layer.confidence(states))
    case.expect("pooling_weights", layer.weights(states, noise))
    inputs = given(case, "states")
    logits = layer(inputs["states"], noise)
    case.expect("logits", logits)
    gradients(case, layer, logits, inputs)


def check_seeder(case: Case) -> None:
    c = case.config
    layer = Seeder(c["state_dim"], c["code_dim"], c.get("use_state_noise", True))
    load(layer, case)
    case.expect("states", layer(case.given("codes"), c["batch_size"], case.tensors.get("in.eps")))


def check_tokenizer(case: Case) -> None:
    c = case.config
    stages, grid = c["num_stages"], c.get("positional_grid_kwargs")
    widths = [c["repr_dim"] // 4, c["repr_dim"] // 2, c["repr_dim"]][:stages]
    table = (grid["dim"], *grid["grid_size"]) if grid else None
    layer = ConvNeXtTokenizer(c["input_dim"], widths, c["depths"], table)
    load(layer, case)
    inputs = given(case, "image")
    case.expect("features", layer.features(inputs["image"]))
    tokens = layer(inputs["image"])
    assert tokens.shape[1:] == (c["num_tokens"], c["token_dim"])
    case.expect("output", tokens)
    gradients(case, layer, tokens, inputs)


CHECKS: dict[str, Callable[[Case], None]] = {
    "nac_modfc": check_modfc,
    "nac_fc": check_alternative,
    "nac_wmodfc": check_alternative,
    "nac_modffn": check_ffn,
    "nac_latent_attention": check_attention,
    "nac_readin_attention": check_read_in,
    "nac_readin_block": check_read_in_block,
    "nac_projection_readin": check_projection,
    "nac_code_noise": check_code_noise,
    "nac_output_pooling": check_pooling,
    "nac_seeder": check_seeder,
    "nac_tokenizer": check_tokenizer,
}
