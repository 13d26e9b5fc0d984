"""Few-shot adaptation as a part of an evaluation: what is trained, what stays, what the row says."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from modnet.errors import RequestError
from modnet.evaluation.few_shot import classifier
from modnet.evaluation.summary import interval
from modnet.methods.few_shot import Adaptation, with_new_classifier
from modnet.randomness import Key
from modnet.recipe.stages import FewShot
from modnet.registry import DATA
from tests.methods.conftest import Lab

FEW = FewShot(data="all", ways=2, shots=5, episodes=3, epochs=15, lr=1e-2)


def adaptation(lab: Lab, few: FewShot, seed: int = 0) -> Adaptation:
    """Episodes for the lab's base network, which here is trained until it knows its digits."""
    changes = ("defaults.augment=[]", "stages.base.epochs=16", "defaults.optimizer={name: adamw, lr: 0.01}")
    return Adaptation(few, lab.run(*changes, only="base"), Key.of(seed))


@pytest.mark.parametrize("tune", ["head", "all"])
def test_a_row_is_the_mean_over_the_episodes(taught: Lab, tune: str) -> None:
    few = FEW.changed(tune=tune, lr=3e-2 if tune == "head" else 5e-3)
    made = adaptation(taught, few)
    network = taught.chain(made.inputs, "base")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    row, again = (made.row(network, 64) for _ in range(2))
    assert row == again
    assert len(row["few_shot"]) == 3
    assert row["few_shot_top1"] == pytest.approx(fmean(row["few_shot"]))
    assert row["few_shot_half_width"] == interval(row["few_shot"])["half_width"]
    assert 60 < row["few_shot_top1"] <= 100, "chance gives 50"
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert adaptation(taught, few, seed=1).row(network, 64) != row


def test_a_new_classifier_is_all_that_differs(taught: Lab) -> None:
    inputs = taught.run(only="base")
    network = taught.chain(inputs, "base")
    twin = with_new_classifier(network, 4, Key.of(0))
    assert classifier(twin).weight.shape == (4, 16)
    assert twin.gives is not None
    assert twin.gives["classes"] == 4
    different = [k for k, v in twin.state_dict().items() if not torch.equal(v, network.state_dict()[k])]
    assert {name.rpartition(".")[0] for name in different} == {f"{len(network.leaves) - 1}.head"}
    same = with_new_classifier(network, 10, Key.of(0))
    assert not torch.equal(classifier(same).weight, classifier(network).weight), "fresh though it has the same shape"


def test_images_of_another_kind_are_refused(taught: Lab) -> None:
    made = adaptation(taught, FEW)
    network = taught.chain(made.inputs, "base")
    made.inputs.recipe.data["all"] = DATA.read("fashion-mnist")  # type: ignore[index]
    with pytest.raises(RequestError, match="few_shot: the network takes image"):
        made.row(network, 64)
