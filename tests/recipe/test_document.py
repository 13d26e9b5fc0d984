"""Strict YAML: positions, YAML 1.2 scalars, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modnet.errors import RequestError
from modnet.recipe.document import read, scalar

TEXT = """\
name: x
models:
  vit:  {name: vit, width: 64}
  list: [1, 1e-3, on, no, 010, "2", null, true]
"""


def test_every_key_and_value_knows_its_line_and_column() -> None:
    document = read(TEXT, "r.yaml")
    spot = document.spot(("models", "vit", "width"))
    assert (spot.key, spot.value, spot.path) == ("r.yaml:3:21", "r.yaml:3:28", "models.vit.width")
    assert document.spot(("models", "list", 2)).value == "r.yaml:4:19"
    assert document.spot(("models", "vit", "depth")).key == "r.yaml:3:3", "the nearest thing around"


def test_scalars_follow_yaml_1_2() -> None:
    assert read(TEXT, "r").data["models"]["list"] == [1, 0.001, "on", "no", 10, "2", None, True]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("10_000", 10000), ("+7", 7), ("-7", -7),
        ("~", None), ("", None), ("False", False), (".inf", math.inf), ("-.inf", -math.inf),
        ("1:30", "1:30"), ("10%", "10%"), ("2020-01-01", "2020-01-01"), ("e5", "e5"), (".", "."), ("yes", "yes"),
    ],
)  # fmt: skip
def test_scalar(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_as_python_writes_them_are_numbers(number: float) -> None:
    assert scalar(repr(number)) == number


def test_a_duplicate_key_is_an_error_that_names_both_places() -> None:
    document = read("a:\n  b: 1\n  c: {d: 1}\n  b: {e: 2}\nf: 3\n", "r.yaml")
    (problem,) = document.problems
    assert str(problem) == "r.yaml:4:3: a.b: this key was already given at r.yaml:2:3"
    assert document.data == {"a": {"b": 1, "c": {"d": 1}}, "f": 3}, "what follows is still read"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: !!python/object/apply:os.system ['true']", "r:1:4: a: YAML tags"),
        ("a: !!int '3'", "YAML tags"),
        ("a: &x {b: 1}", "&x: anchors and aliases"),
        ("a: 1\nb: *x", "r:2:4: b: *x: anchors and aliases"),
        ("a: {<<: *x}", "anchors and aliases"),
    ],
)
def test_tags_anchors_and_aliases_are_refused(text: str, part: str) -> None:
    assert part in "\n".join(map(str, read(text, "r").problems))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1, 2", "this is not YAML: while parsing a flow sequence"),
        ("a: b: c", "r:1:5: this is not YAML"),
        ("\tx: 1", "this is not YAML"),
        ("- 1\n- 2", "a recipe is a mapping"),
        ("hello", "a recipe is a mapping"),
        ("a: 1\n---\nb: 2", "this starts another"),
        ("? [1, 2]\n: 3", "a key is a word"),
        ("a: \x01", "this is not YAML"),
    ],
)
def test_what_is_no_recipe_at_all(text: str, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(text, "r")
    assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_empty_file_is_an_empty_recipe() -> None:
    assert read("# only a comment\n", "r").data == {}
