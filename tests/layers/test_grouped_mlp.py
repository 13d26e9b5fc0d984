"""Perceptrons of experts in one operator: the numbers of the layers one after another, and half of what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from modnet.evaluation.cost import flop_counter
from modnet.layers import grouped_mlp as module
from modnet.layers.grouped_mlp import Activation, grouped_mlp, mlp_backward, mlp_forward
from modnet.layers.moe import Experts, layer_by_layer
from modnet.randomness import Key

EXPERTS, WIDTH, HIDDEN = 4, 6, 10
ENDS = [[2, 5, 6, 9], [0, 7, 7, 9], [0, 0, 0, 0], [9, 9, 9, 9], [3, 3, 4, 7]]  # the last one leaves rows behind
ACTIVATIONS: list[Activation] = ["gelu", "gelu-tanh", "swiglu"]


def experts(activation: Activation = "gelu", bias: bool = True) -> Experts:
    with Key.of(0, "experts").forked():
        made = Experts(WIDTH, HIDDEN, EXPERTS, activation, bias)
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p)
    return made


def apart(layer: Experts, x: Tensor, ends: Tensor) -> Tensor:
    """The same by an operator a layer."""
    layers = [layer.fc1, layer.fc2] if layer.up is None else [layer.fc1, layer.up, layer.fc2]
    parts = [one.parts(x) for one in layers]
    return layer_by_layer(x.to(parts[0][0].dtype), parts, ends, layer.activation)


def rows(count: int = 9) -> Tensor:
    return Key.of(1).normal(torch.arange(count), WIDTH)


@contextmanager
def stored() -> Iterator[list[Tensor]]:
    """What autograd keeps in the body."""
    found: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        found.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ends", ENDS)
def test_outputs_and_gradients_are_those_of_layer_after_layer(
    ends: list[int], activation: Activation, bias: bool
) -> None:
    layer, x, where = experts(activation, bias), rows().requires_grad_(), torch.tensor(ends)
    found = []
    for compute in (Experts.compute, apart):
        out = compute(layer, x, where)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_differences(activation: Activation) -> None:
    layer, ends = experts(activation).double(), torch.tensor([2, 2, 5, 7])
    layers = [layer.fc1, layer.fc2] if layer.up is None else [layer.fc1, layer.up, layer.fc2]
    count = len(layers)

    def through(x: Tensor, *p: Tensor) -> Tensor:
        return grouped_mlp(x, list(p[:count]), list(p[count:]), ends, activation)

    ordered = [p.detach().requires_grad_() for part in ("weight", "bias") for p in (getattr(m, part) for m in layers)]
    assert torch.autograd.gradcheck(through, (rows().double().requires_grad_(), *ordered))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frozen", ["experts", "rows", "all"])
def test_what_is_frozen_takes_no_gradient_and_changes_no_other(frozen: str, activation: Activation) -> None:
    layer, ends = experts(activation), torch.tensor([2, 5, 6, 9])
    wanted = rows().requires_grad_()
    layer.compute(wanted, ends).sum().backward()
    x = rows().requires_grad_(frozen == "experts")
    partly = experts(activation).requires_grad_(frozen == "rows")
    out = partly.compute(x, ends)
    assert out.requires_grad == (frozen != "all")
    if frozen != "all":
        out.sum().backward()
    assert (x.grad is None) == (frozen != "experts")
    if x.grad is not None:
        assert wanted.grad is not None
        assert torch.equal(x.grad, wanted.grad)
    for p, q in zip(partly.parameters(), layer.parameters(), strict=True):
        assert (p.grad is None) == (frozen != "rows")
        assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(("activation", "count"), [("gelu", 1), ("swiglu", 2)])
def test_it_keeps_half_of_what_layers_keep(activation: Activation, count: int) -> None:
    layer, ends = experts(activation), torch.tensor([2, 5, 6, 9])
    kept = []
    for compute in (Experts.compute, apart):
        with stored() as found:
            compute(layer, rows(), ends)
        kept.append(sum(len(t) == 9 and t.shape[-1] == HIDDEN for t in found))
    assert kept == [count, 2 * count]


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_is_kept_where_nothing_learns(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spied(*parts: Any) -> list[Tensor]:
        asked.append(parts[-1])
        found: list[Tensor] = mlp_forward(*parts)
        return found

    monkeypatch.setattr(module, "mlp_forward", spied)
    layer, ends = experts().requires_grad_(not frozen), torch.tensor([2, 5, 6, 9])
    with torch.set_grad_enabled(frozen):
        out = layer.compute(rows(), ends)
    assert asked == [False]
    torch.testing.assert_close(out, apart(layer, rows(), ends))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frozen", ["nothing", "experts", "rows"])
def test_it_costs_what_the_layers_cost(frozen: str, activation: Activation) -> None:
    layer, counted = experts(activation).requires_grad_(frozen != "experts"), []
    for compute in (Experts.compute, apart):
        with flop_counter() as counter:
            compute(layer, rows().requires_grad_(frozen != "rows"), torch.tensor([2, 5, 6, 9])).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_autocast_computes_in_its_dtype() -> None:
    found = []
    for compute in (Experts.compute, apart):
        layer, x = experts(), rows().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = compute(layer, x, torch.tensor([2, 5, 6, 9]))
        assert out.dtype == torch.bfloat16
        found.append((out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])))
    assert all(grad.dtype == torch.float32 for grad in found[0][1:])
    torch.testing.assert_close(*found, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("biased", [True, False])
def test_the_operators_keep_their_promises(biased: bool) -> None:
    layer, ends = experts("swiglu"), torch.tensor([2, 5, 6, 9])
    assert layer.up is not None
    layers = (layer.fc1, layer.up, layer.fc2)
    weights, biases = [one.weight.detach() for one in layers], [one.bias.detach() for one in layers if biased]
    given = (rows(), weights, biases, ends, "swiglu")
    checks = ("test_schema", "test_faketensor")
    for keep in (True, False):
        torch.library.opcheck(mlp_forward, (*given, keep), test_utils=checks)
    _, *hidden = mlp_forward(*given, True)
    for wanted in ((True, True), (True, False), (False, True)):
        back = (rows(), rows(), hidden, weights, ends, "swiglu", *wanted, biased)
        torch.library.opcheck(mlp_backward, back, test_utils=checks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_compiles() -> None:
    layer, ends = experts(), torch.tensor([2, 5, 6, 9])
    found = []
    for compute in (layer.compute, torch.compile(layer.compute)):
        x = rows().requires_grad_()
        out = compute(x, ends)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*found)
