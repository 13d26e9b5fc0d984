"""What ``modnet distill --teacher`` makes of a teacher that brings its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modnet.errors import RequestError

STAGE = "stages.trained_teacher"
ADAPTED = 2  # epochs of fine-tuning for other classes, with a rate that leaves most of what the teacher knows


def with_weights(teacher: str, source: str, *, weights: Path | None, pretrained: bool) -> tuple[list[str], str]:
    """Overrides that let the shipped recipe's teacher start from its weights, and a sentence that says what it does.

    A teacher for as many classes as the data has is used as it is (no epochs); one for others is fine-tuned first, in
    the stage that would have trained it. Raises RequestError for a file that cannot be read.
    """
    loaded = [f"models.teacher.weights={weights}"] if weights is not None else []
    loaded += ["models.teacher.pretrained=true"] if pretrained else []
    known, wanted = taught_classes(teacher, weights), classes_of(source)
    if known is not None and known == wanted:
        return [*loaded, f"{STAGE}.epochs=0"], f"the teacher's weights tell {known} classes apart: it teaches as it is"
    told = f"for {known or 'an unknown number of'} classes, and {source} has {wanted or 'an unknown number of them'}"
    tuned = [f"{STAGE}.epochs={ADAPTED}", f"{STAGE}.optimizer={{name: adamw, lr: 1e-4}}"]
    return [*loaded, *tuned], f"the teacher's weights are {told}: stage trained_teacher fine-tunes it, {ADAPTED} epochs"


def classes_of(source: str) -> int | None:
    """How many classes a data source has, None where only its images tell; raises RequestError for an unknown one."""
    from modnet.recipe import sources  # noqa: F401  (it registers them)
    from modnet.registry import DATA, UnknownName

    try:
        return DATA.get(source).facts.get("classes")
    except UnknownName as miss:
        raise RequestError(f"--data {source}: {miss}") from None


def taught_classes(teacher: str, weights: Path | None) -> int | None:
    """The classes that a teacher's weights tell apart: read from the file's head, or known to timm; None if unknown."""
    from modnet.recipe.models import TIMM_NAMES

    name = TIMM_NAMES.get(teacher, teacher.removeprefix("timm:"))
    config = _timm_config(name) if name != teacher else None
    if weights is None:
        return None if config is None else int(config.num_classes)
    classifier = str(config.classifier) if config is not None else "head"
    return _rows(weights, f"{classifier}.weight")


def _timm_config(name: str) -> Any:
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(name, allow_unregistered=True)


def _rows(path: Path, tensor: str) -> int | None:
    """How many rows a tensor of a safetensors file has; None if it holds no such tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_slice(tensor).get_shape()[0]) if tensor in file.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RequestError(f"--weights {path}: no safetensors file that can be read ({error})") from None
