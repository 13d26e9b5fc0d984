"""Checks of the golden cases of Mowst."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modnet.chain import Chain, Module, Pass, Port
from modnet.layers.confidence import (
    Cascade,
    HyperGate,
    PerceptronGate,
    dispersion,
    mixed,
    mowst_loss,
    mowst_star_loss,
)

MAKERS = {"para1": "weight1", "parabias1": "bias1", "para2": "weight2", "parabias2": "bias2"}
GRADIENT_TOLERANCE = 1e-4


class Fixed(Module):
    """A network that gives what it is given."""

    role = "head"

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.takes, self.gives = None, Port.of("logits", classes=logits.shape[1], per="image")

    def forward(self, x: Tensor, ctx: Pass) -> Tensor:
        return self.logits


def ours(name: str) -> str:
    """The name of one of the reference's tensors in our gate."""
    name = name.replace("lins.", "linears.").replace("bns.", "norms.")
    stem, _, rest = name.partition(".")
    return f"perceptron.{rest}" if stem == "gate" else f"makers.{MAKERS[stem]}.{rest}"


def gate_of(case: Any) -> PerceptronGate | HyperGate:
    config = case.config
    shape = (config["hidden"], max(config["layers"].values()), config["batch_norm"])
    if config["gate_input"].startswith("hyper"):
        gate: PerceptronGate | HyperGate = HyperGate(config["feature_dim"], *shape)
    else:
        gate = PerceptronGate(config["feature_dim"] if "features" in config["gate_input"] else 0, *shape)
    state = {ours(name): tensor for name, tensor in case.under("state.").items()}
    missing, unexpected = gate.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return gate


def check_confidence(case: Any) -> None:
    for prefix, name in (("", "logits"), ("edge_", "edge_logits")):
        variance, entropy = dispersion(case.given(name)).unbind(-1)
        case.expect(f"{prefix}variance", variance)
        case.expect(f"{prefix}negative_entropy", entropy)


def check_gate(case: Any) -> None:
    gate, features, target = gate_of(case), case.given("features"), case.given("target")
    weak, strong = (case.given(f"{name}_logits").clone().requires_grad_() for name in ("weak", "strong"))
    val = case.given("val_mask").bool()
    gate.eval()
    with torch.no_grad():
        confidence = gate(dispersion(weak), features).sigmoid()
        parts = (weak[val], strong[val], confidence[val], target[val])
        small, large = (F.cross_entropy(z[val], target[val], reduction="none") for z in (weak, strong))
        case.expect("confidence", confidence)
        case.expect("ce_weak", small)
        case.expect("ce_strong", large)
        case.expect("loss_mowst_per_sample", mowst_loss(*parts))
        case.expect("loss_mowst", mowst_loss(*parts).mean())
        case.expect("loss_mowst_star", mowst_star_loss(*parts).mean())
        c = confidence[val]
        case.expect("loss_mowst_star_separate_option", (c * small.mean() + (1 - c) * large.mean()).mean())
    check_inference(case, gate, weak, strong, features)
    check_training(case, gate, weak, strong, features)


def check_inference(case: Any, gate: torch.nn.Module, weak: Tensor, strong: Tensor, features: Tensor) -> None:
    """The reference mixes probabilities, and takes the confidence from a softmax of these."""
    kind = {"kind": "perceptron", "sees": "dispersion", "hidden": 2, "layers": 2, "batch_norm": False}
    small, large = (Chain([Fixed(logits.detach())]) for logits in (weak, strong))
    cascade = Cascade(small, large, kind, answer="mix", quirk_probabilities=True)
    cascade.gate = _Seeing(gate, features)
    with torch.no_grad():
        scores = Chain([cascade]).eval()(torch.zeros(len(weak)))
        confidence = cascade.score(weak.softmax(-1)).sigmoid()
    case.expect("inference_confidence", confidence)
    case.expect("inference_scores", scores)
    torch.testing.assert_close(scores, mixed(weak.softmax(-1), strong.softmax(-1), confidence).detach())


class _Seeing(torch.nn.Module):
    """A gate that sees features of its own, not the network's probabilities."""

    def __init__(self, gate: torch.nn.Module, features: Tensor) -> None:
        super().__init__()
        self.inner, self.features = gate, features

    def forward(self, spread: Tensor, features: Tensor) -> Tensor:
        out: Tensor = self.inner(spread, self.features)
        return out


def check_training(case: Any, gate: torch.nn.Module, weak: Tensor, strong: Tensor, features: Tensor) -> None:
    rows, target = case.given("train_mask").bool(), case.given("target")
    gate.train()
    state = {name: t.clone() for name, t in gate.state_dict().items()}
    named = dict(gate.named_parameters())
    for name, loss in (("train_loss_mowst_star", mowst_star_loss), ("train_loss_mowst", mowst_loss)):
        if f"out.{name}" not in case.waiting:
            continue
        gate.load_state_dict(state)
        confidence = gate(dispersion(weak), features).sigmoid()
        value = loss(weak[rows], strong[rows], confidence[rows], target[rows]).mean()
        case.expect(name, value)
        grads = torch.autograd.grad(value, [weak, strong, *named.values()], allow_unused=True)
        kind = "star" if loss is mowst_star_loss else "mowst"
        for part, grad in zip(("weak", "strong"), grads[:2], strict=True):
            if f"out.train_{kind}_grad_{part}" in case.waiting:
                assert grad is not None
                case.expect(f"train_{kind}_grad_{part}", grad, GRADIENT_TOLERANCE)
        if kind == "star":
            found = dict(zip(named, grads[2:], strict=True))
            for key in [k for k in sorted(case.waiting) if k.startswith("out.gate_train.grad.")]:
                grad = found[
                    ours(
                        re.sub(r"^out\.gate_train\.grad\.(?=lins|bns)", "gate.", key).replace(
                            "out.gate_train.grad.", ""
                        )
                    )
                ]
                assert grad is not None
                case.expect(key.removeprefix("out."), grad, GRADIENT_TOLERANCE)


CHECKS = {"mowst_confidence": check_confidence, "mowst_gate": check_gate}
