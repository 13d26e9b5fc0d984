"""``modnet import`` and ``modnet export``: published files to networks of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modnet.chain import Chain, Port
from modnet.errors import RequestError
from modnet.interop import nac
from modnet.interop.deep_incubation import architecture, write_stages
from modnet.interop.files import write_state
from modnet.interop.keys import check_published, load_named, load_published, published_state, split_experts
from modnet.interop.m2mkd import STITCHES, write_student_module, write_teacher_module
from modnet.interop.published import Checkpoint, load_checkpoint, read
from modnet.layers.block import Block
from modnet.layers.head import Head
from modnet.layers.moe import MoEBlock
from modnet.layers.nac.latents import Latents
from modnet.layers.stem import PatchStem
from modnet.randomness import Key
from modnet.recipe.nac import NAC
from modnet.registry import MODELS, Params
from modnet.surgery.stitching import is_stitch
from modnet.surgery.transplant import family_of


@dataclass
class Wanted:
    """What an imported network should be: its model, images and classes; None: what the file's tensors say.

    ``allow_missing``, ``allow_unexpected``: patterns of names that may lack a counterpart.
    """

    model: Params | None = None
    port: Port | None = None
    classes: int | None = None
    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    said: list[str] = field(default_factory=list)


def imported(files: Sequence[Path], wanted: Wanted) -> Chain:
    """The network that one file holds whole, or several by modules; ``wanted.said`` tells what went where.

    Raises RequestError for files that do not fit together or into the model, naming every tensor.
    """
    found = [read(path) for path in files]
    if len(found) == 1 and not found[0].is_module:
        chain = built(found[0], wanted)
        report = load_checkpoint(chain, found[0], wanted.allow_missing, wanted.allow_unexpected)
        wanted.said.append(f"{found[0].source} ({found[0].layout}): {report}")
        return chain
    whole = [f.source for f in found if not f.is_module]
    if whole:
        raise RequestError(f"{whole[0]} holds a whole network: import it alone, or give files of one module each")
    if wanted.model is None:
        raise RequestError("modules do not tell of which network they are: name it, such as --model vmoe-b")
    network = _fresh(wanted.model, wanted.port, wanted.classes)
    joined = _circuit if isinstance(wanted.model, NAC) else _transformer
    joined(_in_order(found, len(network)), network, wanted)
    return network


def built(found: Checkpoint, wanted: Wanted) -> Chain:
    """A fresh network for a whole checkpoint: the one asked for, else what its tensors tell."""
    if wanted.model is not None:
        return _fresh(wanted.model, wanted.port, wanted.classes)
    if found.layout not in ("deep-incubation", "timm"):
        raise RequestError(f"{found.source} ({found.layout}) does not tell its sizes: name the model, --model NAME")
    params, port, classes = architecture(found.stages or [found.state])
    return _fresh(params, wanted.port or port, wanted.classes or classes)


def _fresh(params: Params, port: Port | None, classes: int | None) -> Chain:
    if port is None or classes is None:
        raise RequestError("say for which images and classes: --data NAME, such as --data imagenet")
    with Key.of(0, "import").forked():
        chain: Chain = MODELS.get(str(params.name)).resolve()(params, port, classes)  # type: ignore[attr-defined]
    return chain


def _in_order(found: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """The modules by their places: those that the files state, else as they were given."""
    if len(found) != count:
        raise RequestError(f"the network has {count} modules, but {len(found)} files were given: one each, in order")
    if len({f.layout for f in found}) > 1:
        raise RequestError(f"the files are of several layouts: {', '.join(f'{f.source} {f.layout}' for f in found)}")
    places = [i if f.place is None else f.place for i, f in enumerate(found)]
    if sorted(places) != list(range(count)):
        raise RequestError(f"the files stand for modules {places}, not for each of 0 to {count - 1} once")
    return [found[places.index(i)] for i in range(count)]


def _transformer(found: Sequence[Checkpoint], network: Chain, wanted: Wanted) -> None:
    """Blocks or students into a network's modules; stitches are left out."""
    left = (*STITCHES, *wanted.allow_unexpected)
    for i, file in enumerate(found):  # all of them before any is loaded
        check_published(network[i], file.state, file.source, wanted.allow_missing, left)
    for i, file in enumerate(found):
        report = load_published(
            network[i], file.state, file.source, allow_missing=wanted.allow_missing, allow_unexpected=left
        )
        wanted.said.append(f"module {i}, {file.source}: {report}")


def _circuit(found: Sequence[Checkpoint], network: Chain, wanted: Wanted) -> None:
    """Students into a circuit, through students of our own for the images that they saw."""
    params = wanted.model
    assert isinstance(params, NAC)
    grid = found[0].state.get("tokenizer.positional_grid.grid")
    logits = found[-1].state.get("tokenizer.to_logits.weight")
    if grid is None or logits is None:
        raise RequestError("give the students in order: the read-in first, the read-out last")
    size = int(grid.shape[-1]) * params.stem_patch << (len(params.stem_depths) - 1)
    channels = 3 if network.takes is None else network.takes["channels"]
    source = _fresh(params.changed(graph={"name": "none"}), Port.of("image", channels=channels, size=size), len(logits))
    family = family_of(MODELS.get(str(params.name)).resolve())
    students = [family.student(source, i, 0) for i in range(len(source))]
    left = ("pre_stitch.*", "post_stitch.*", *wanted.allow_unexpected)
    for student, file in zip(students, found, strict=True):
        names = nac.student_names(student)
        report = load_named(student, file.state, names, file.source, wanted.allow_missing, left)
        wanted.said.append(f"{file.source}: {report}")
    report_of_all = family.transplant(students, network)
    wanted.said.append(f"into the circuit: {report_of_all}; left at their start: {', '.join(report_of_all.left)}")


# ---- writing ------------------------------------------------------------------------------------


def exported(network: Chain, layout: str, path: Path, split: bool = False) -> list[Path]:
    """Write a whole network in a published layout; gives the files. ``split``: with a tensor for each expert.

    Raises RequestError for a layout that cannot hold this network.
    """
    writer = WHOLE.get(layout)
    if writer is None:
        raise RequestError(f"--layout {layout}: a whole network is written as {', '.join(WHOLE)}")
    _check(network, layout)
    return writer(network, path, split)


def exported_modules(modules: Sequence[Chain], folder: Path, split: bool = False) -> list[Path]:
    """Write distilled modules, stitches included, as m2mKD does: a file each."""
    circuit = any(type(leaf).__module__ == "modnet.layers.nac.students" for leaf in modules[0].leaves)
    files = []
    for i, module in enumerate(modules):
        if circuit:
            place = "ReadIn" if i == 0 else "ReadOut" if i == len(modules) - 1 else "Mediator"
            files.append(folder / f"{place}Student{f'_{i}' if place == 'Mediator' else ''}.pth")
            nac.write_student(module, files[-1])
        else:
            files.append(folder / f"module_{i}.pth")
            write_student_module(module, files[-1], split=split)
    return files


def _check(network: Chain, layout: str) -> None:
    if isinstance(network.shared_part, Latents) != (layout == "nac"):
        kind = "a circuit" if layout != "nac" else "no circuit"
        raise RequestError(f"--layout {layout} cannot hold this network, which is {kind}")
    odd = [
        leaf
        for leaf in network.leaves
        if not (isinstance(leaf, PatchStem | Block | MoEBlock | Head) or is_stitch(leaf))
    ]
    if layout != "nac" and odd:
        raise RequestError(f"--layout {layout} holds Vision Transformers; this network has a {type(odd[0]).__name__}")


def _stages(network: Chain, path: Path, split: bool) -> list[Path]:
    write_stages(network, path, split=split)
    return [path]


def _flat(network: Chain, path: Path, split: bool) -> list[Path]:
    state = published_state(network)
    write_state(split_experts(state) if split else state, path)
    return [path]


def _blocks(network: Chain, path: Path, split: bool) -> list[Path]:
    files = [path / f"module_{i}.pth" for i in range(len(network))]
    for i, file in enumerate(files):
        write_teacher_module(network, i, file, path.name)
    return files


def _nac(network: Chain, path: Path, split: bool) -> list[Path]:
    nac.write_circuit(network, path)
    return [path]


WHOLE: dict[str, Callable[[Chain, Path, bool], list[Path]]] = {
    "deep-incubation": _stages,
    "m2mkd-blocks": _blocks,
    "nac": _nac,
    "timm": _flat,
}
MODULES = "m2mkd-students"
LAYOUTS = (*WHOLE, MODULES)
