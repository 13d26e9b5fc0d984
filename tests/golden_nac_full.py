"""Checks of the golden cases of whole circuits; ``tests/test_golden.py`` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modnet.chain import Chain, Pass, Port
from modnet.engine.losses import blend, kd_term, soft_cross_entropy
from modnet.interop.nac import circuit_names
from modnet.layers.nac.circuit import SlotHead
from modnet.layers.nac.regularisers import scheduled
from modnet.models.nac import nac
from modnet.randomness import Key
from modnet.recipe.nac import NAC, Graph
from tests.golden_nac import gradients, ours

if TYPE_CHECKING:
    from tests.golden_case import Case

DEPTHS = {
    "tiny": (3, 3, 9),
    "mini": (3, 3, 6),
    "micro": (3, 3, 3),
    "nano": (1, 1, 1),
    "pico": (1, 1, 0),
    "femto": (1, 0, 0),
    "atto": (0, 0, 0),
}
LATENTS = "latent_graphs.0."


def params_of(c: Mapping[str, Any]) -> NAC:
    """Our parameters from the reference's configuration of a whole circuit."""
    graph, stem, out = c["latent_graph_kwargs"], c["input_tokenizer_kwargs"], c["output_tokenizer_kwargs"] or {}
    kernel = graph["propagator_kwargs"]["latent_attention_kwargs"]["kernel_kwargs"]
    modulation, read_in, read_out = graph["mod_fc_kwargs"], graph["read_in_kwargs"], graph["read_out_kwargs"]
    assert modulation["add_one_to_scale"]
    assert modulation["learnable_scale_gain"]
    assert graph["propagator_kwargs"]["latent_attention_kwargs"]["share_layernorm"]
    assert read_in.get("num_heads", graph["num_heads"]) == graph["num_heads"]
    seeder = graph["latent_seeder_kwargs"] or {}
    noisy = "noisy" if seeder.get("use_state_noise", True) else "mean"
    slot = c["output_tokenizer_type"] == "FirstSlotAsLogits"
    assert slot == read_out["use_head"] == read_out["pre_output_layernorm"]
    return NAC(
        width=c["state_dim"],
        codes=graph["code_dim"],
        signatures=graph["signature_dim"],
        inputs=graph["num_input_latents"],
        mediators=graph["num_mediator_latents"],
        outputs=graph["num_output_latents"],
        iterations=graph["num_iterations"],
        share_weights=graph["share_propagator_weights"],
        share_codes=graph.get("share_codes_between_iterations", True),
        heads=graph["num_heads"],
        head_width=graph["head_dim"],
        capacity=graph["ffn_capacity_factor"],
        geglu=graph["use_geglu"],
        qkv_bias=graph["qkv_bias_in_attention"],
        layer_scale=graph["layer_scale_initial_value"],
        gain=modulation["scale_gain"],
        drop_path=graph["path_drop_prob"],
        code_noise=graph["code_noise_scale"],
        seeds=noisy if graph.get("use_latent_seeder", True) else "learned",
        truncation=kernel["truncation"],
        stochastic=kernel["stochastic_kernel"],
        temperature=kernel["stochastic_sampling_temperature"],
        hears_inputs="always" if graph.get("enable_persistent_input_mediator_communication", True) else "first",
        read_out_hears_inputs=graph.get("enable_input_output_communication", True),
        read_in_residual=read_in["include_residual_in_read_in_attention"],
        read_out_residual=read_out["include_residual_in_latent_attention"],
        pooling="slot" if slot else out["softmax_type"],
        pooling_temperature=out.get("softmax_temperature", 1.0),
        stem_depths=DEPTHS[stem["capacity_preset"]][: stem["num_stages"]],
        positions=stem["positional_grid_kwargs"]["dim"],
        graph=Graph(name="none"),
        repulsion=0.0,
        quirk_eval_noise=True,
    )


def circuit(c: Mapping[str, Any]) -> Chain:
    port = Port.of("image", channels=c["input_dim"], size=c["image_size"])
    return nac(params_of(c), port, c["output_dim"])


def named(reference: str, chain: Chain) -> str:
    """Our key of a tensor of a whole circuit that the reference calls ``reference``."""
    last = len(chain.leaves) - 1
    rounds = last - 3
    table = (
        (r"^input_tokenizer\.(.*)", lambda m: f"0.tokenizer.{ours(m[1])}"),
        (r"^output_tokenizer\.(.*)", lambda m: f"{last}.pooling.{ours(m[1])}"),
        (r"^latent_graphs\.0\.(\w+)_latents\.(?:initial_)?(\w+)_$", r"shared.\1.\2"),
        (r"^latent_graphs\.0\.latent_seeder\.(.*)", lambda m: f"shared.seeder.{ours(m[1])}"),
        (r"^latent_graphs\.0\.read_in\.(.*)", lambda m: f"1.{inner(m[1])}"),
        (r"^latent_graphs\.0\.propagators\.(\d+)\.(.*)", lambda m: f"{2 + min(int(m[1]), rounds - 1)}.{inner(m[2])}"),
        (r"^latent_graphs\.0\.read_out\.head\.0\.module\.(.*)", rf"{last}.norm.\1"),
        (r"^latent_graphs\.0\.read_out\.head\.1\.(.*)", lambda m: f"{last}.fc.{ours(m[1])}"),
        (r"^latent_graphs\.0\.read_out\.(.*)", lambda m: f"{last - 1}.{inner(m[1])}"),
    )
    for pattern, replacement in table:
        if re.match(pattern, reference):
            found = re.sub(pattern, replacement, reference)
            assert circuit_names(chain)[reference] == found, "what importing a checkpoint goes by"
            return found
    raise KeyError(reference)


def inner(name: str) -> str:
    """Our name below a leaf: the kernel stands beside the attention, not in it."""
    name = re.sub(r"^(latent|read_in)_attention\.", "attention.", name)
    head, _, rest = name.partition(".")
    if rest.startswith("kernel."):
        return rest
    return f"{head}.{ours(rest if head == 'attention' else f'ffn.{rest}').removeprefix('ffn.')}"


def load(chain: Chain, state: Mapping[str, Tensor]) -> None:
    """Every tensor of the reference goes somewhere, and every one of ours comes from there."""
    found = {named(name, chain): tensor for name, tensor in state.items()}
    assert found.keys() == chain.state_dict().keys()
    chain.load_state_dict(found)


class Given(Key):
    """A key whose draws are given, one row a sample."""

    def __init__(self, draws: Tensor) -> None:
        super().__init__(0)
        object.__setattr__(self, "draws", draws)

    def uniform(self, ids: Tensor, draws: int = 1) -> Tensor:
        given: Tensor = self.draws  # type: ignore[attr-defined]
        assert given.numel() == len(ids) * draws
        return given.reshape(len(ids), draws)

    normal = uniform


class Script(Key):
    """A key from which the draw of each leaf and purpose is looked up, and used once."""

    def __init__(self, draws: dict[tuple[int, str], Tensor]) -> None:
        super().__init__(0)
        object.__setattr__(self, "draws", draws)

    def fold(self, *parts: int | str) -> Key:
        _, leaf, purpose = parts
        return Given(self.draws.pop((leaf, purpose)))  # type: ignore[attr-defined]


def as_uniform(exponential: Tensor) -> Tensor:
    """The uniform numbers from which our inverse method draws these exponential ones."""
    return -torch.expm1(-exponential.double())


def run(case: Case, chain: Chain, key: Key | None) -> Tensor:
    """Logits, and all states on the way compared."""
    image, last = case.tensors["in.image"].clone().requires_grad_(), len(chain.leaves) - 1
    ctx = Pass(key, torch.arange(len(image)), wanted=frozenset(range(last)))
    logits: Tensor = chain(image, ctx)
    count = case.config["latent_graph_kwargs"]["num_input_latents"]
    case.expect("logits", logits)
    case.expect("tokens", ctx.taps[0])
    case.expect("input_states", ctx.taps[1][:, :count])
    case.expect("mediator_states", ctx.taps[last - 2][:, count:])
    head, out = chain.leaves[-1], ctx.taps[last - 1]
    case.expect("output_states", head.every(out, ctx) if isinstance(head, SlotHead) else out)
    for name in [k for k in sorted(case.waiting) if k.startswith("out.propagator_states.")]:
        place = 2 + int(name.rpartition(".")[2])
        case.expect(name.removeprefix("out."), ctx.taps[place][:, count:])
    if "in.cotangent" in case.tensors:
        theirs = {k.removeprefix("out.grad.") for k in case.waiting if k.startswith("out.grad.")} - {"image"}
        parameters = dict(chain.named_parameters())
        inputs = {name: parameters[named(name, chain)] for name in theirs}
        gradients(case, chain, logits, {"image": image, **inputs})
    return logits


def check_full(case: Case) -> None:
    """All four cases: what is drawn comes from the case; nothing that it holds is left unused."""
    chain = circuit(case.config)
    load(chain, case.under("state."))
    draws = given_draws(case, chain)
    chain.train("draws" in case.config)
    if "out.seed_input" in case.waiting:
        ctx, image = Pass(shared=chain.shared_part), case.given("image")
        shared: Any = chain.shared_part
        for role in ("input", "mediator", "output"):
            case.expect(f"seed_{role}", shared.first_states(role, chain.leaves[1], image, ctx))
    run(case, chain, Script(draws) if draws else None)
    assert not draws, f"not drawn: {sorted(draws)}"


def given_draws(case: Case, chain: Chain) -> dict[tuple[int, str], Tensor]:
    """The case's draws by the leaf and purpose that draw them here."""
    last = len(chain.leaves) - 1
    places = {"input": 1, "mediator": 1, "output": last - 1}
    if "draws" in case.config:
        return listed_draws(case, places, last)
    found = {(places[r], f"seed/{r}"): case.tensors[f"in.eps_{r}"] for r in places if f"in.eps_{r}" in case.tensors}
    if "in.gumbel" in case.tensors:
        found[last, "pooling"] = as_uniform((-case.given("gumbel").double()).exp())
    return found


def listed_draws(case: Case, places: Mapping[str, int], last: int) -> dict[tuple[int, str], Tensor]:
    found: dict[tuple[int, str], Tensor] = {}
    paths: dict[int, list[Tensor]] = {}
    seeded = {"code_noiser": iter(places), "": iter(places)}
    sides: dict[int, list[str]] = {}
    for name, kind, module, _ in case.config["draws"]:
        draw = case.tensors[name]
        module = module.removeprefix(LATENTS)
        if module == "output_tokenizer":
            assert kind == "exponential"
            found[last, "pooling"] = as_uniform(draw)
        elif module.startswith("latent_seeder"):
            part = module.removeprefix("latent_seeder").removeprefix(".")
            role = next(seeded[part])
            found[places[role], f"code_noise/seed/{role}" if part else f"seed/{role}"] = draw
        elif module == "read_in.code_noiser":
            found[1, "code_noise"] = draw
        else:
            depth = re.match(r"propagators\.(\d+)", module)
            leaf = last - 1 if depth is None else 2 + int(depth[1])
            if module.endswith("code_noiser"):
                side = sides.setdefault(leaf, ["senders", "receivers"]).pop()
                found[leaf, f"code_noise/{side}"] = draw
            elif module.endswith("kernel"):
                found[leaf, "kernel"] = draw
            else:
                assert module.endswith("drop_path")
                paths.setdefault(leaf, []).append(draw.flatten())
    return found | {(leaf, "drop_path"): torch.stack(pair, dim=1) for leaf, pair in paths.items()}


def check_losses(case: Case) -> None:
    c = case.config
    student = case.given("student_logits").clone().requires_grad_()
    soft, teacher = case.given("soft_targets"), case.given("teacher_logits")
    ce, aux = soft_cross_entropy(student, soft), student.square().mean()
    case.expect("ce", ce)
    case.expect("aux", aux)
    ends = re.fullmatch(r"linear\(start=([\d.]+),stop=([\d.]+)\)", c["schedule"])
    assert ends is not None
    weight = (float(ends[1]), float(ends[2]))
    for key in [k for k in sorted(case.waiting) if k.startswith("out.loss_progress_")]:
        progress = int(key.rpartition("_")[2]) / 100
        case.expect(key.removeprefix("out."), ce + scheduled(weight, progress) * aux)
    loss = blend(ce, kd_term(student, teacher, c["tau"], "soft", "numel"), c["alpha"])
    case.expect("distill_soft", loss)
    case.expect("grad_distill_soft", torch.autograd.grad(loss, student)[0], 1e-4)
    base = torch.nn.functional.cross_entropy(student, case.given("hard_targets"))
    case.expect("distill_hard", blend(base, kd_term(student, teacher, c["tau"], "hard", "numel"), c["alpha"]))


CHECKS: dict[str, Callable[[Case], None]] = {"nac_full": check_full, "nac_losses": check_losses}
