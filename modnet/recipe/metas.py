"""``meta: {from: teacher, …}`` in a stage: short for a stage before it that aligns a meta network with a teacher."""

from __future__ import annotations

from typing import Any

from modnet.recipe.document import Document
from modnet.recipe.fields import keys
from modnet.recipe.problems import Path
from modnet.recipe.stages import stage_class
from modnet.registry import MODELS, UnknownName

SHORT = {"from": "teacher", "model": "student"}  # the words of the short form, and what a stage calls them
FIXED = ("run", "method", *SHORT.values())


def expand_metas(document: Document) -> None:
    """Give every ``meta: {from: TEACHER, …}`` of a document a stage of its own, ``<stage>_meta``, placed before it.

    Its keys are those of ``{run: distill, method: align}``, with ``from`` for ``teacher`` and ``model`` for
    ``student``. Without ``model`` it is the teacher's model with one block a module. Every key keeps its position, and
    keys that stand under ``stages.<stage>_meta`` already, such as overrides, are added.
    """
    stages = document.data.get("stages")
    if not isinstance(stages, dict):
        return
    expanded: dict[str, Any] = {}
    for name, stage in list(stages.items()):
        if _has_short_meta(stage):
            made = f"{name}_meta"
            if (aligned := _aligned(document, name, made)) is not None:
                expanded[made] = stages[made] = aligned
            stage["meta"] = made
        expanded.setdefault(name, stages[name])
    document.data["stages"] = expanded


def _has_short_meta(stage: Any) -> bool:
    if not isinstance(stage, dict) or not isinstance(stage.get("meta"), dict):
        return False
    try:
        return "meta" in keys(stage_class(stage))
    except UnknownName:
        return False


def _aligned(document: Document, name: str, made: str) -> dict[str, Any] | None:
    """The stage that a short form means; None, with an error noted, where its name is taken."""
    source: Path = ("stages", name, "meta")
    held = document.data["stages"].get(made, {})
    if not isinstance(held, dict) or "run" in held:
        taken = document.spot(("stages", made)).key
        message = f"this becomes a stage called {made}, but that name is taken ({taken}); rename the other stage"
        document.complain(source, message, quote=False)
        return None
    short: dict[str, Any] = document.get(source)
    for key in [key for key in short if key in FIXED]:
        said = "; write " + next((f"`{word}:`" for word, key_ in SHORT.items() if key_ == key), "it nowhere")
        document.complain((*source, key), f"is no key of the short form `meta: {{from: TEACHER, …}}`{said}", key=True)
    for word, key in SHORT.items():
        document.copy((*source, word), ("stages", made, key))
    document.copy(source, ("stages", made))
    stage = {SHORT.get(key, key): value for key, value in short.items() if key not in FIXED} | held
    if "from" not in short:
        message = "`from:` is missing: the stage, or model with weights, that the meta network is aligned with"
        document.complain(source, message, key=True, quote=False)
        stage["teacher"] = document.data["stages"][name].get("teacher", "")  # told once, here
    if "student" not in stage:
        stage["student"] = _twin(document, source, made, stage["teacher"])
    return {"run": "distill", "method": "align", **stage}


def _twin(document: Document, source: Path, made: str, teacher: Any) -> str:
    """The name of a model like the teacher's with one block a module; notes an error where there can be none."""
    models = document.data.get("models")
    if not isinstance(models, dict):
        return ""
    model = _model_of(document, teacher)
    value = models.get(model)
    values: Any = {"name": value} if isinstance(value, str) else value
    try:
        params = MODELS.read(values)
    except (ValueError, UnknownName):  # noted where the model or the teacher's name stands
        return model or next(iter(models), "")
    if not {"width", "depths"} <= type(params).model_fields.keys():
        message = (
            f"needs `model:` as well: {values['name']} has no smaller twin of its own; give `models` a network as wide "
            "as the teacher, with as many modules and tokens, such as {name: vit, width: …, depths: [1, 1, 1, 1]}"
        )
        document.complain(source, message, quote=False)
        return model
    twin = f"{made}_model"
    unweighted = {key: held for key, held in values.items() if key not in ("pretrained", "weights")}
    models[twin] = {**unweighted, "depths": [1] * len(params.depths)}
    document.copy(("models", model), ("models", twin))
    return twin


def _model_of(document: Document, name: Any) -> str:
    """The model whose network a stage of this name gives, as far as the words of the document tell."""
    seen = set()
    while isinstance(name, str) and name not in seen:
        seen.add(name)
        if document.get(("models", name)) is not None:
            return name
        stage = document.get(("stages", name))
        stage = stage if isinstance(stage, dict) else {}
        name = next((stage[key] for key in ("model", "student", "from") if stage.get(key)), None)
    return ""
