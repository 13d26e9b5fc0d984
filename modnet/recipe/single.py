"""A recipe of one stage: ``run:`` at the top, and models and data in place."""

from __future__ import annotations

from modnet.recipe.document import Document
from modnet.recipe.fields import Ref, attribute_of, keys, marker
from modnet.recipe.schema import NAME
from modnet.recipe.stages import Stage, stage_class
from modnet.registry import UnknownName


def single_stage(document: Document) -> None:
    """Give a recipe with ``run:`` at the top its ``stages:``; models and data may be written in place.

    The stage is named after the recipe, or else after its verb. ``model: {name: vit, …}`` becomes the model ``model``,
    ``data: {name: digits}`` or ``data: digits`` the data ``data``.
    """
    top = document.data
    if "run" not in top:
        return
    if "stages" in top:
        document.complain(("run",), "a recipe has `run:` at the top or `stages:`, not both", key=True)
        return
    verb = top["run"]
    name = next((n for n in (top.get("name"), verb) if isinstance(n, str) and NAME.fullmatch(n)), "stage")
    _inline_data(document)
    try:
        cls = stage_class(top)
    except UnknownName:
        cls = Stage
    fields = keys(cls)
    stage = {key: top.pop(key) for key in list(top) if (key in fields or key == "run") and key not in ("seed", "data")}
    for key, value in stage.items():
        document.copy((key,), ("stages", name, key))
        ref = marker(cls, attribute_of(cls, key), Ref)
        if ref and "model" in ref.kinds and isinstance(value, dict):
            top.setdefault("models", {})[key] = value
            document.copy((key,), ("models", key))
            stage[key] = key
    if len(top.get("data") or {}) == 1 and "data" not in (top.get("defaults") or {}):
        stage["data"] = next(iter(top["data"]))
        document.copy(("data",), ("stages", name, "data"))
    top["stages"] = {name: stage}
    document.copy(("run",), ("stages", name))


def _inline_data(document: Document) -> None:
    value = document.data.get("data")
    if isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("name"), str)):
        document.copy(("data",), ("data", "data"))
        document.data["data"] = {"data": value}
