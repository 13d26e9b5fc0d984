"""Every quirk that can be asked for stands in docs/fidelity.md, and every quirk named there can be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import modnet.recipe.loading  # noqa: F401  (registers all parameter classes)
from modnet.recipe.stages import ROUTES, route_class
from modnet.registry import Params

TEXT = (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text()


for _method in ROUTES:
    route_class(_method)  # which imports the file that defines it


def classes(cls: type[Params] = Params) -> Iterator[type[Params]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from classes(sub)


def test_quirks_and_their_documentation_agree() -> None:
    fields = {name for cls in classes() for name in cls.model_fields if name.startswith("quirk_")}
    assert fields == set(re.findall(r"quirk_\w+", TEXT))
    assert len(fields) >= 6
    assert all(cls.model_fields[n].default is False for cls in classes() for n in fields if n in cls.model_fields)


def test_rows_are_numbered_in_order_and_have_a_status() -> None:
    tables = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    for table in tables:
        rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", table, flags=re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1)), table.splitlines()[0]
        assert all(
            re.match(r"(default: |layer: |freezing: )?(yes|none needed|not built)", status) for _, status in rows
        )
