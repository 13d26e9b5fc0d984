"""Checks of the golden cases of Deep Incubation and m2mKD; ``tests/test_golden.py`` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.chain import Chain, Pass, Port
from modnet.engine.batch import Batch
from modnet.engine.losses import base_loss, blend, kd_term, soft_cross_entropy
from modnet.engine.optimizers import decays
from modnet.engine.schedules import cosine_epochwise, epochwise_lr
from modnet.interop.deep_incubation import doubled, load_stages, stages_of
from modnet.interop.keys import load_published, published_names, published_state, split_experts
from modnet.layers.drop_path import set_drop_path
from modnet.layers.moe import MoEBlock
from modnet.layers.stitches import NormLinearStitch
from modnet.methods.m2mkd import M2mkdObjective
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.recipe.stages import M2mkd
from modnet.recipe.training import AdamW, EpochwiseCosine
from modnet.surgery import hybrid, stitched
from tests.golden_case import Case

GRADIENT_TOLERANCE = 1e-4


def network(case: Case, sizes: dict[str, Any], depths: Iterable[int]) -> Chain:
    """A ViT of the case's sizes; those of one network come before those of the whole case."""
    config = {"mlp_ratio": 4.0, **case.config, **sizes}
    params = ViT(
        width=config["embed_dim"],
        depths=tuple(depths),
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        patch=config["patch_size"],
        qkv_bias=config["qkv_bias"],
        norm_eps=config["norm_eps"],
    )
    port = Port.of("image", channels=config["in_chans"], size=config["img_size"])
    return vit(params, port, config["num_classes"])


def loaded(case: Case, sizes: dict[str, Any], depths: list[int], prefix: str) -> Chain:
    """The network whose doubled state dict the case holds under ``prefix``, both copies checked."""
    chain = network(case, sizes, depths)
    stages = stages_of({"model": case.under(prefix)}, prefix)
    load_stages(chain, stages, prefix)
    return chain


def check_vit(case: Case) -> None:
    prefix = case.document["state_dict_prefix"]
    chain = loaded(case, {}, case.config["divided_depths"], prefix).eval()
    ends = [position for position, leaf in enumerate(chain.leaves) if leaf.role == "block"]
    last = [ends[sum(chain.depths[: k + 1]) - 1] for k in range(len(chain))]
    ctx = Pass(wanted=frozenset({0, *last}))
    logits = chain(case.given("images"), ctx)
    case.expect("tokens_embedded", ctx.taps[0])
    for k, position in enumerate(last):
        case.expect(f"tokens_after_module_{k}", ctx.taps[position])
    norm: Any = chain.leaves[-1].norm
    case.expect("tokens_final_norm", norm(ctx.taps[last[-1]]))
    case.expect("logits", logits)
    again = doubled([published_state(module) for module in chain])
    reference = case.under(prefix)
    assert again.keys() == reference.keys()
    assert all(torch.equal(again[name], reference[name]) for name in reference)


def check_module_training_step(case: Case) -> None:
    config = case.config
    index = range(len(config["target_divided_depths"]))[config["idx"]]
    meta = network(case, {}, config["meta_divided_depths"])
    meta_stages = [case.under(f"meta.model_stages.{k}.") for k in range(len(meta))]
    load_stages(meta, meta_stages, "meta")
    target = network(case, {}, config["target_divided_depths"])
    load_published(target[index], case.under(f"state.stages.{index}."), "state")
    mixed = hybrid(meta, target[index], index).train()
    assert list(mixed.depths) == config["hybrid_divided_depths"]
    before = {k: t.clone() for k, t in doubled_state(mixed).items()}
    assert all(torch.equal(before[k], t) for k, t in case.under("state.").items())
    assert config["drop_path"] == 0, "the published code's draws cannot be repeated"

    batch = labelled(case)
    logits = mixed(batch.x)
    loss = base_loss(batch, logits, config["label_smoothing"])
    case.expect("logits", logits)
    case.expect("loss", loss)
    loss.backward()
    optimizer(case, target[index]).step()
    case.expect("logits_after_step", mixed(batch.x))
    compare_after_step(case, mixed, index, before)


def compare_after_step(case: Case, mixed: Chain, index: int, before: dict[str, Tensor]) -> None:
    after = doubled_state(mixed)
    for name in [k for k in case.under("out.after.") if k.startswith("stages.")]:
        tensor, reference = after[name], case.tensors[f"out.after.{name}"]
        if name.startswith(f"stages.{index}."):
            free = case.config["optimizer"] != "SGD" and name.endswith("qkv.bias")
            if free:  # the keys' third has no gradient but rounding, which AdamW makes a step of
                width = len(tensor) // 3
                tensor = torch.cat([tensor[:width], reference[width : 2 * width], tensor[2 * width :]])
        else:
            assert torch.equal(tensor, before[name]), f"{name} has changed"
            assert torch.equal(reference, before[name])
        case.expect(f"after.{name}", tensor)
    changed = [
        name for name in before if name.startswith(f"stages.{index}.") and not torch.equal(after[name], before[name])
    ]
    assert len(changed) == case.document["facts"]["tensors_of_module_idx_changed"]


def doubled_state(chain: Chain) -> dict[str, Tensor]:
    return doubled([published_state(module) for module in chain])


def labelled(case: Case) -> Batch:
    images = case.given("images")
    soft = case.tensors.get("in.soft_labels")
    return Batch(images, case.given("labels"), torch.arange(len(images)), soft)


def optimizer(case: Case, chain: Chain) -> torch.optim.Optimizer:
    config = case.config
    parameters = [p for p in chain.parameters() if p.requires_grad]
    assert len(parameters) == len(list(chain.parameters()))
    if config["optimizer"] == "SGD":
        return torch.optim.SGD(parameters, config["lr"], config["momentum"], weight_decay=config["weight_decay"])
    assert config["optimizer"] == "AdamW"
    return torch.optim.AdamW(parameters, config["lr"], weight_decay=config["weight_decay"])


def check_distillation_loss(case: Case) -> None:
    for key in sorted(case.waiting):
        _, form, variant, alpha, *_ = key.split(".")
        own = case.given("class_logits").clone().requires_grad_()
        distilled = own if form == "single" else case.given("distill_logits").clone().requires_grad_()
        loss = soft_cross_entropy(own, case.given("soft_labels"))
        kind, _, _ = variant.partition("_")
        if kind != "none":
            tau = case.config["variants"][variant] or 1.0
            term = kd_term(distilled, case.given("teacher_logits"), tau, as_kind(kind), "numel")
            loss = blend(loss, term, case.config["alphas"][alpha])
        name = f"{form}.{variant}.{alpha}"
        if key == f"out.{name}":
            case.expect(name, loss)
            continue
        grads = dict(zip(("class", "distill"), torch.autograd.grad(loss, [own, distilled]), strict=True))
        which = key.rpartition("grad_")[2]
        case.expect(f"{name}.grad_{which}", grads[which], GRADIENT_TOLERANCE)


def as_kind(kind: str) -> Any:
    assert kind in ("soft", "hard")
    return kind


def check_m2mkd(case: Case) -> None:
    config = case.config
    meta = loaded(case, config["meta"], config["meta"]["divided_depths"], "state.meta.")
    teacher = loaded(case, config["teacher"], config["teacher"]["divided_depths"], "state.teacher.")
    for idx in config["idx"]:
        check_m2mkd_module(case, meta.eval(), teacher.eval(), idx)


def check_m2mkd_module(case: Case, meta: Chain, teacher: Chain, idx: int) -> None:
    name = "idxlast" if idx == -1 else f"idx{idx}"
    at = range(len(meta))[idx]
    learner = student_module(case, meta, at, name)
    images = case.given("images")
    entering = meta[:at].frozen()(images)
    if at:
        case.expect(f"{name}.meta_front_tokens", entering)
    tail = meta[at + 1 :].frozen()
    taught = tail(teacher[at].frozen()(entering))
    given = learner(entering)
    logits = tail(given)
    case.expect(f"{name}.teacher_logits", taught)
    case.expect(f"{name}.student_module_output", given)
    case.expect(f"{name}.student_logits", logits)
    gradients_of = re.search(r"gradients for variant (\w+), base (\w+), (\w+)", case.document["notes"])
    assert gradients_of is not None
    for key in [k for k in case.waiting if k.startswith(f"out.{name}.loss.")]:
        variant, base, alpha = key.split(".")[3:]
        loss = m2mkd_loss(case, logits, taught, variant, base, alpha)
        case.expect(key.removeprefix("out."), loss)
        objective_agrees(case, (meta, teacher, learner), at, (variant, base, alpha), loss)
        if (variant, base, alpha) == gradients_of.groups():
            compare_gradients(case, learner, loss, f"{name}.grad.stages.0.")


def student_module(case: Case, meta: Chain, at: int, name: str) -> Chain:
    """The student's module between stitches, with the case's tensors."""
    sizes = case.config["student"]
    whole = network(case, sizes, [sizes["depth"]] * len(meta))
    if sizes.get("moe_pos"):
        whole = with_experts(whole, sizes)
    kinds = {"LayerNorm+Linear": "ln-linear", "Linear": "linear", "none": "identity"}
    learner = stitched(whole[at], meta, at, kinds[sizes["stitch"]])
    state = case.under(f"state.student_{name}.")
    (stage,) = stages_of({"model": state}, name)
    load_published(learner, stage, name)
    assert all(leaf.ln.eps == sizes["stitch_ln_eps"] for leaf in learner.leaves if isinstance(leaf, NormLinearStitch))
    return learner.eval()


def with_experts(whole: Chain, sizes: dict[str, Any]) -> Chain:
    """The student with fastmoe's naive gate and experts in blocks ``moe_pos`` of every module."""
    blocks = [i for i, leaf in enumerate(whole.leaves) if leaf.role == "block"]
    chosen = {blocks[m * sizes["depth"] + place] for m in range(len(whole)) for place in sizes["moe_pos"]}
    leaves = list(whole.leaves)
    for i in chosen:
        given = {k: v for k, v in leaves[i].arguments.items() if k != "mlp_ratio"}
        hidden = int(sizes["embed_dim"] * sizes["mlp_ratio"])
        count, top_k = sizes.get("num_expert", 8), sizes.get("top_k", 2)  # fastmoe's own
        leaves[i] = MoEBlock(hidden=hidden, experts=count, top_k=top_k, router={"name": "top-k-softmax"}, **given)
    return Chain(leaves, whole.bounds)


def targets(case: Case, base: str) -> tuple[Batch, float]:
    """The batch and the smoothing of a base loss: ``softlabel``, or ``smooth01`` for 0.1."""
    batch = labelled(case)
    if base == "softlabel":
        return batch, 0.0
    digits = re.fullmatch(r"smooth(\d)(\d+)", base)
    assert digits is not None
    return Batch(batch.x, batch.y, batch.ids), float(".".join(digits.groups()))


def m2mkd_loss(case: Case, logits: Tensor, taught: Tensor, variant: str, base: str, alpha: str) -> Tensor:
    batch, smoothing = targets(case, base)
    loss = base_loss(batch, logits, smoothing)
    switches = case.config["variants"][variant]
    if switches["type"] == "none":
        return loss
    term = kd_term(logits, taught, switches["tau"], switches["type"], "numel")
    return blend(loss, term, case.config["alphas"][alpha])


def objective_agrees(
    case: Case, chains: tuple[Chain, Chain, Chain], at: int, what: tuple[str, str, str], loss: Tensor
) -> None:
    """The method's own objective gives the loss that was compared."""
    meta, teacher, learner = chains
    switches = case.config["variants"][what[0]]
    if switches["type"] == "none":
        return
    batch, smoothing = targets(case, what[1])
    kd = M2mkd(
        data="data",
        student="student",
        teacher="teacher",
        meta="meta",
        alpha=case.config["alphas"][what[2]],
        tau=switches["tau"],
        kind=switches["type"],
        kd_norm="numel",
        label_smoothing=smoothing,
    )
    objective = M2mkdObjective(meta, teacher, {at: learner}, kd)
    (found,) = objective(batch, Pass(Key.of(0), batch.ids)).values()
    torch.testing.assert_close(found, loss, atol=case.tolerance, rtol=case.tolerance)


def compare_gradients(case: Case, learner: Chain, loss: Tensor, prefix: str) -> None:
    named, names = dict(learner.named_parameters()), published_names(learner)
    wanted = [k.removeprefix(f"out.{prefix}") for k in case.waiting if k.startswith(f"out.{prefix}")]
    assert wanted
    found = torch.autograd.grad(
        loss, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    gradients = {names[ours]: gradient for ours, gradient in zip(named, found, strict=True)}
    gradients |= split_experts(gradients)  # fastmoe's other layout
    for key in wanted:
        case.expect(f"{prefix}{key}", gradients[key], GRADIENT_TOLERANCE)


def check_schedules(case: Case) -> None:
    document = case.document
    for name, row in document["schedules"].items():
        check_schedule(name, row, case.tolerance)
    for name, row in document["drop_path"].items():
        chain = network_of_depths(row["depths"])
        set_drop_path(chain, row["max_rate"])
        rates: list[Any] = [leaf.drop_path for leaf in chain.leaves if leaf.role == "block"]
        assert rates == pytest.approx(row["rates"], abs=document["tolerance_drop_path"]), name
    for name, row in document["weight_decay"].items():
        check_weight_decay(name, row)


def network_of_depths(depths: list[int]) -> Chain:
    params = ViT(width=4, heads=1, depths=tuple(depths), patch=2)
    return vit(params, Port.of("image", channels=1, size=2), 2)


def check_schedule(name: str, row: dict[str, Any], tolerance: float) -> None:
    lr = row["base_lr"] * row["total_batch"] / 512
    assert lr == pytest.approx(row["scaled_lr"], abs=tolerance)
    shape = {k: row[k] for k in ("warmup_epochs", "warmup_lr", "min_lr")}
    for lag, key in ((True, "lr_used_during_epoch"), (False, "lr_after_step_of_epoch")):
        params = EpochwiseCosine(quirk_lag=lag, **shape)
        steps = 7
        by_step = cosine_epochwise(params, row["epochs"] * steps, steps, lr)
        for epoch, expected in zip(row["epochs_listed"], row[key], strict=True):
            found = epochwise_lr(epoch, lr, params, row["epochs"])
            assert found == pytest.approx(expected, abs=tolerance, rel=0), (name, key, epoch)
            for step in (epoch * steps, (epoch + 1) * steps - 1):
                assert by_step(step) == pytest.approx(expected, abs=tolerance, rel=0)


def check_weight_decay(name: str, row: dict[str, Any]) -> None:
    """Names are the reference's; shapes follow from ours, as published names are the same."""
    chain = network_of_depths([1, 1])
    state = dict(doubled_state(chain))
    tensors = state if name == "whole_model" else {}
    if not tensors:
        stage = int(name.rpartition("_")[2])
        tensors = published_state(chain[stage])
    every, expected = row["decayed"] + row["not_decayed"], set(row["decayed"])
    if name != "whole_model":  # there the published code decays embeddings, by oversight
        quirk = AdamW(quirk_decay_embeddings=True)
        assert {k for k in every if decays(k, tensors[k], quirk)} == expected, name
        expected -= {"cls_token", "pos_embed"}
    assert {k for k in every if decays(k, tensors[k])} == expected, name


CHECKS: dict[str, Callable[[Case], None]] = {
    "deep_incubation_vit": check_vit,
    "deep_incubation_mt_step": check_module_training_step,
    "distillation_loss": check_distillation_loss,
    "m2mkd_loss": check_m2mkd,
    "lr_and_drop_path": check_schedules,
}
