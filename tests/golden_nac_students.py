"""Checks of the golden cases of a circuit's students; ``tests/test_golden.py`` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modnet.chain import Chain, Port
from modnet.interop.nac import student_names
from modnet.models.nac import nac
from modnet.models.nac_students import student, transplant
from modnet.models.vit import vit
from modnet.randomness import Key
from modnet.recipe.models import ViT
from modnet.surgery import stitched
from tests.golden_nac import gradients, ours
from tests.golden_nac_full import inner, named, params_of

if TYPE_CHECKING:
    from tests.golden_case import Case


def circuit(full: Mapping[str, Any], grid: Sequence[int], seed: int = 0, classes: int | None = None) -> Chain:
    """The whole circuit for images that the tokenizer turns into ``grid`` tokens."""
    reduction = 4 << (full["input_tokenizer_kwargs"]["num_stages"] - 1)
    port = Port.of("image", channels=full["input_dim"], size=grid[0] * reduction)
    with Key.of(seed, "circuit").forked():
        return nac(params_of(full), port, classes or full["output_dim"])


def taught(network: Chain, i: int, width: int) -> Chain:
    """Module ``i`` of a circuit as it learns among tokens of ``width``, between linear stitches."""
    params = ViT(width=width, heads=1, depths=(1,) * len(network), patch=4)
    host = vit(params, Port.of("image", channels=1, size=4), 2)
    return stitched(student(network, i, width), host, i, "linear")


def student_key(name: str, chain: Chain) -> str:
    """Our key of a tensor of a student that the reference calls ``name``."""
    last = len(chain.leaves) - 1
    if name.startswith("pre_stitch."):
        return name.replace("pre_stitch", "0.fc")
    if name.startswith("post_stitch."):
        return name.replace("post_stitch", f"{last}.fc")
    if name.startswith("tokenizer."):
        rest = ours(name.removeprefix("tokenizer."))
        return f"{last}.pooling.{rest}" if chain.leaves[last].role == "head" else f"0.tokenizer.{rest}"
    return f"1.{inner(name.removeprefix('read_in.'))}"


def place(case: Case, count: int) -> int:
    """The module that a case's student stands for."""
    if "mediator_index" in case.config:
        return int(case.config["mediator_index"])
    return 0 if "input_dim" in case.config else count - 1


def check_student(case: Case) -> None:
    c = case.config
    network = circuit(c["full_model"], c["student_grid"], classes=c.get("output_dim"))
    i = place(case, len(network))
    chain = taught(network, i, c["stitch_dim"])
    state = {student_key(name, chain): tensor for name, tensor in case.under("state.").items()}
    assert {student_key(name, chain): name for name in case.under("state.")} == {
        own: theirs for theirs, own in student_names(chain).items()
    }, "what importing a checkpoint goes by"
    own = {name for name in chain.state_dict() if not re.search(r"\.(code|state)$", name)}
    assert state.keys() == own
    chain.load_state_dict(state, strict=False)
    learner: Any = chain.leaves[1]
    learner.code = case.given("codes")
    if "in.states" in case.tensors:
        learner.state = case.given("states")
    x = case.tensors["in.image"] if "in.image" in case.tensors else case.given("tokens")
    out = chain.eval()(x)
    case.expect("logits" if "out.logits" in case.waiting else "output", out)
    if "in.cotangent" in case.tensors:
        parameters = dict(chain.named_parameters())
        wanted = {k.removeprefix("out.grad.") for k in case.waiting if k.startswith("out.grad.")}
        gradients(case, chain, out, {name: parameters[student_key(name, chain)] for name in wanted})


CHECKPOINT = re.compile(r"(ReadIn|Mediator|ReadOut)Student(?:_(\d+))?")


def module_of(checkpoint: str, count: int) -> int:
    found = CHECKPOINT.fullmatch(checkpoint)
    assert found is not None
    return {"ReadIn": 0, "ReadOut": count - 1}.get(found[1], int(found[2] or 0))


def check_loading(case: Case) -> None:
    """What is loaded, dropped and left, for images of the students' size and of another."""
    c = case.config
    read_in = c["students"]["readin"]
    seen = read_in["tokenizer_kwargs"]["positional_grid_kwargs"]["grid_size"]
    other = c["full_model"]["input_tokenizer_kwargs"]["positional_grid_kwargs"]["grid_size"]
    for kind, grid in (("tinynet", other), ("imagenet", seen)):
        network, source = circuit(c["full_model"], grid, 1), circuit(c["full_model"], seen, 2)
        students = [taught(source, i, read_in["stitch_dim"]) for i in range(len(source))]
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        report = transplant(students, network)
        compare(case, kind, network, students, before)
        lists = c["types"][kind]
        assert set(report.left) == {named(name, network) for name in lists["left_at_init"]}
        fixed = [name for name in report.dropped if re.search(r"\.(code|state)$", name)]
        assert len(report.dropped) - len(fixed) == len(lists["unused"])
        case.expect(f"count_loaded.{kind}", torch.tensor(len(report.loaded)))


def compare(case: Case, kind: str, network: Chain, students: Sequence[Chain], before: Mapping[str, Tensor]) -> None:
    """Every pair of names holds one tensor now, and what is left at init has not changed."""
    after, lists = network.state_dict(), case.config["types"][kind]
    for checkpoint, theirs, full in lists["loaded"]:
        chain = students[module_of(checkpoint, len(network))]
        assert torch.equal(after[named(full, network)], chain.state_dict()[student_key(theirs, chain)]), full
    left = [named(name, network) for name in lists["left_at_init"]]
    assert all(torch.equal(after[name], before[name]) for name in left)


CHECKS: dict[str, Callable[[Case], None]] = {"nac_students_loading": check_loading, "nac_student_": check_student}
