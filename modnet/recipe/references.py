"""What names in a recipe point to: data, models, stages, shift suites; and the order that follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modnet.errors import RequestError
from modnet.recipe.document import Document
from modnet.recipe.fields import references
from modnet.recipe.problems import either
from modnet.recipe.sources import Source, shifts
from modnet.recipe.stages import Stage
from modnet.registry import DATA, Params, nearest


class Named(Protocol):
    """Anything with the three tables of names."""

    @property
    def data(self) -> Mapping[str, Source]: ...
    @property
    def models(self) -> Mapping[str, Params]: ...
    @property
    def stages(self) -> Mapping[str, Stage]: ...


def inputs_of(stage: Stage, recipe: Named) -> list[str]:
    """The names of the stages that a stage reads from, in the order of its fields."""
    names = [name for _, ref, name in references(stage) if "stage" in ref.kinds]
    return [name for name in dict.fromkeys(names) if name in recipe.stages]


def resolve_suite(name: str, recipe: Named) -> tuple[Source, str | None]:
    """The source of a test set or shift suite, and the shift: ``fashion-mnist-r`` is (fashion-mnist, "r").

    ``name`` is a data name of the recipe or a registered source, either with a shift's suffix. Raises RequestError.
    """
    if source := _source(name, recipe):
        return source, None
    for suffix in shifts():
        base = name.removesuffix(f"-{suffix}")
        if base != name and (source := _source(base, recipe)):
            return source, suffix
    known = [*recipe.data, *DATA.names()]
    known += [f"{base}-{suffix}" for base in dict.fromkeys(known) for suffix in shifts()]
    near = nearest(name, known)
    hint = f"; did you mean {either(near)}?" if near else ""
    raise RequestError(
        f"no test set is called {name!r}: it is a name under `data`, a registered source ({', '.join(DATA.names())}), "
        f"or one of them with a shift ({', '.join('-' + s for s in shifts())}){hint}"
    )


def _source(name: str, recipe: Named) -> Source | None:
    if name in recipe.data:
        return recipe.data[name]
    if name not in DATA:
        return None
    needs = [key for key, info in DATA.get(name).params.model_fields.items() if info.is_required() and key != "name"]
    if needs:
        raise RequestError(f"source {name!r} needs {either(needs)}: give it a name under `data` and use that name")
    source = DATA.read(name)
    assert isinstance(source, Source)
    return source


def in_order(document: Document, recipe: Named) -> list[str] | None:
    """Stage names, each after what it needs and otherwise as written; notes cycles, and then gives None."""
    order: list[str] = []
    clean = True
    for name in recipe.stages:
        clean &= _visit(name, [], order, document, recipe)
    return order if clean else None


def _visit(name: str, trail: list[str], order: list[str], document: Document, recipe: Named) -> bool:
    if name in order:
        return True
    if name in trail:
        circle = trail[trail.index(name) :]
        if name == min(circle, key=list(recipe.stages).index):  # a circle is met once from each of its stages
            way = " -> ".join([*circle, name])
            message = f"stages need each other in a circle: {way}"
            document.complain(("stages", name), message, key=True, quote=False)
        return False
    clean = True
    for needed in inputs_of(recipe.stages[name], recipe):
        clean &= _visit(needed, [*trail, name], order, document, recipe)
    if clean:
        order.append(name)
    return clean
