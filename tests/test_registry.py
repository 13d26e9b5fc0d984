"""Registries: presets, tags, globbing, deprecations, misses, and plug-ins from typed functions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from modnet.registry import Params, Registry, UnknownName, first_sentence, plugin


class Box(Params):
    """A box, with sides. And more."""

    name: str = "box"
    width: int = 1
    sides: tuple[int, ...] = (1, 2)


def build_box(params: Box) -> str:
    return f"box {params.width}"


@pytest.fixture
def table() -> Registry:
    registry = Registry("box")
    registry.register("box", Box, f"{__name__}:build_box", facts={"size": 3})
    registry.preset("box-l", "box", width=9)
    registry.tag("box-l", "red", about="a red one", sides=(7,))
    registry.register("any:", Box, f"{__name__}:build_box")
    registry.deprecate("crate", "box")
    return registry


def test_a_preset_is_its_base_with_other_defaults(table: Registry) -> None:
    assert table.read("box-l").width == 9
    assert table.read({"name": "box-l", "width": 2}).width == 2
    assert table.get("box-l").base == "box"
    assert table.get("box-l").facts == {"size": 3}


def test_a_tag_is_a_named_preset_and_keeps_what_its_entry_sets(table: Registry) -> None:
    red = table.read("box-l.red")
    assert (red.name, red.width, red.sides) == ("box-l.red", 9, (7,))
    assert table.get("box-l.red").base == "box"
    with pytest.raises(UnknownName, match=r"with this tag is called 'box-l.rad'; did you mean 'box-l.red'"):
        table.get("box-l.rad")


def test_globbing(table: Registry) -> None:
    assert table.names("box-l*") == ["box-l", "box-l.red"]
    assert table.names() == ["any:…", "box", "box-l", "box-l.red"]


def test_a_prefix_answers_for_every_name_after_it(table: Registry) -> None:
    assert table.read("any:thing").name == "any:thing"
    assert "any:thing" in table
    assert "any:" not in table


def test_a_deprecated_name_answers_with_a_warning(table: Registry) -> None:
    with pytest.warns(DeprecationWarning, match="'crate' is now called 'box'"):
        assert table.read("crate").name == "box"


def test_a_miss_names_the_nearest_or_all(table: Registry) -> None:
    with pytest.raises(UnknownName, match="no box is called 'bx'; did you mean 'box'"):
        table.get("bx")
    with pytest.raises(UnknownName, match="known: any:…, box, box-l"):
        table.get("zzzzzz")


def test_a_name_is_registered_once(table: Registry) -> None:
    with pytest.raises(ValueError, match="'box' is already registered"):
        table.register("box", Box, "x:y")


@pytest.mark.parametrize("values", [{"width": "3"}, {"width": True}, {"width": 1.5}, {"sides": 3}, {"colour": 1}])
def test_reading_is_strict(table: Registry, values: dict) -> None:
    with pytest.raises(ValidationError):
        table.read({"name": "box", **values})


def test_lists_become_tuples_and_parameters_pass_through(table: Registry) -> None:
    box = table.read({"name": "box", "sides": [1, 2, 3]})
    assert box.sides == (1, 2, 3)
    assert table.read(box) is box


def test_an_entry_resolves_to_its_builder(table: Registry) -> None:
    assert table.get("box").resolve()(Box(width=4)) == "box 4"


def test_parameters_are_immutable_and_changed_copies_are_checked() -> None:
    box = Box(width=4)
    with pytest.raises(ValidationError):
        box.width = 5  # type: ignore[misc]
    assert box.changed(width=5) == Box(width=5)
    with pytest.raises(ValidationError):
        box.changed(width="wide")


def test_the_decorator_derives_parameters_from_the_signature(table: Registry) -> None:
    @plugin(table, "ball")
    def ball(port: str, *, radius: float, colour: str = "red") -> tuple:
        """A round thing. Not a box."""
        return port, radius, colour

    params = table.read({"name": "ball", "radius": 2})
    assert params.model_dump() == {"name": "ball", "radius": 2.0, "colour": "red"}
    assert ball(params, "port") == ("port", 2.0, "red"), "as a builder"
    assert ball("port", radius=1.0) == ("port", 1.0, "red"), "as it was written"
    assert table.get("ball").about == "A round thing"
    with pytest.raises(ValidationError):
        table.read({"name": "ball"})


def test_the_decorator_wants_types(table: Registry) -> None:
    with pytest.raises(TypeError, match="argument 'radius' of ball needs a type"):

        @plugin(table, "ball")
        def ball(port: str, *, radius=1) -> None: ...


def test_first_sentences() -> None:
    assert first_sentence(Box) == "A box, with sides"

    def cited() -> None:
        """Mix images (Zhang et al. 2017) and more. Then stop."""

    assert first_sentence(cited) == "Mix images (Zhang et al. 2017) and more"
