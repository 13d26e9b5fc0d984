"""ModuleFormer as a chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modnet.chain import Chain, Pass, Port, describe, parameter_count, rebuild
from modnet.errors import RequestError
from modnet.evaluation.cost import cost
from modnet.layers.balance import concentration
from modnet.models.moduleformer import moduleformer
from modnet.recipe.moduleformer import ModuleFormer
from modnet.recipe.routers import ExpertChoice, PerceptronTopK
from modnet.surgery import assemble, cut

FEW = settings(max_examples=15, deadline=None)

TEXT = Port.of("ids", vocab=256, length=12)


def model(**changes: Any) -> Chain:
    torch.manual_seed(0)
    sizes = {"width": 8, "attention_hidden": 4, "heads": 2, "attention_experts": 3, "hidden": 6, "experts": 4}
    return moduleformer(ModuleFormer(**{**sizes, **changes}), TEXT, 256).eval()


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(seed))


@FEW
@given(st.integers(1, 11), st.sampled_from(["perceptron", "centroids", "softmax-top-k"]))
def test_no_byte_sees_what_comes_after_it(at: int, router: str) -> None:
    chain, x = model(router={"name": router}), ids()
    changed = x.clone()
    changed[:, at] = (changed[:, at] + 1) % 256
    before, after = chain(x), chain(changed)
    torch.testing.assert_close(before[:, :at], after[:, :at])
    assert not torch.allclose(before[:, at:], after[:, at:])


def test_it_is_cut_and_assembled_and_stored() -> None:
    chain, x = model(depths=(1, 2)), ids()
    assert chain.depths == (1, 2)
    assert torch.equal(assemble(cut(chain, (2, 1)))(x), chain(x))
    again = rebuild(describe(chain)).eval()
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(x), chain(x))


def test_every_router_tells_its_loss_and_load() -> None:
    chain, ctx = model(router={"name": "perceptron", "concentration": 0.5}).train(), Pass()
    chain(ids(), ctx)
    assert set(ctx.losses) == {f"{i}{part}.router" for i in (1, 2) for part in ("", ".attention")}
    for name, experts in (("1.load", 4), ("1.attention.load", 3)):
        assert ctx.stats[name].shape == (experts,)
        assert float(ctx.stats[name].sum()) == pytest.approx(1)


def test_concentration_is_least_for_one_expert_and_most_for_even_load() -> None:
    even, one = torch.full((5, 4), 0.25), torch.eye(4)[torch.zeros(5, dtype=torch.long)]
    assert float(concentration(even)) == pytest.approx(torch.tensor(4.0).log().item())
    assert float(concentration(one)) == pytest.approx(0)
    certain_but_spread = torch.eye(4)
    assert float(concentration(certain_but_spread)) == pytest.approx(torch.tensor(4.0).log().item())


def test_active_parameters_are_those_that_a_byte_meets() -> None:
    sparse, dense = model(), model(experts=2, attention_experts=2)
    assert cost(dense, TEXT).active == parameter_count(dense)
    routers = sum(p.numel() for name, p in sparse.named_parameters() if ".gate.gate." in name)
    routers -= sum(p.numel() for name, p in dense.named_parameters() if ".gate.gate." in name)
    assert cost(sparse, TEXT).active == parameter_count(dense) + routers


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attention_hidden": 5, "heads": 2}, "not a multiple of heads"),
        ({"experts": 1, "top_k": 2}, "more experts than there are"),
        ({"router": ExpertChoice()}, "later bytes decide"),
        ({"router": PerceptronTopK(capacity=1.0)}, "later bytes decide"),
        ({"router": PerceptronTopK(capacity_eval=0.5)}, "later bytes decide"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        ModuleFormer(**changes)


def test_images_are_refused() -> None:
    with pytest.raises(RequestError, match="reads text"):
        moduleformer(ModuleFormer(), Port.of("image", channels=1, size=8), 10)
