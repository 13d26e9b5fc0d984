"""Typed parameters of texts, which language models read as bytes."""

# No `from __future__ import annotations`: pydantic would compile every annotation again (15 ms).

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from modnet.recipe.fields import Unkeyed
from modnet.recipe.sources import Source
from modnet.registry import DATA

Suffixes = Annotated[tuple[str, ...], Field(min_length=1)]
SMOKE_BYTES = 4096


class Text(Source):
    """Files of text, each wholly in train, val or test by its name, cut into windows of ``length`` bytes.

    ``train_bytes`` and ``held_bytes`` (of val and test each): at most so many, whole files in an order by their names'
    hashes.
    """

    length: Annotated[int, Field(ge=2)] = 128
    train_bytes: PositiveInt | None = 2_000_000
    held_bytes: PositiveInt | None = 200_000

    @model_validator(mode="after")
    def _no_classes(self) -> "Text":
        if self.per_class is not None or self.fraction is not None:
            raise ValueError("text has no classes to take parts of: give train_bytes in place of per_class or fraction")
        return self


class PackageText(Text):
    """Text files of an installed Python package, such as the C++ headers of torch."""

    package: str
    suffixes: Suffixes = (".py",)


class TextFolder(Text):
    """Own text files: all below ``path`` that end in one of the suffixes."""

    path: Annotated[str, Unkeyed()]  # the files' content stands for it in keys
    suffixes: Suffixes = (".txt", ".md", ".rst")


class TextTable(Text):
    """A Hugging Face set with a column of text, each row a file: ``hub``, or ``path`` as the library stores sets."""

    hub: Annotated[str | None, Unkeyed()] = None  # such as Salesforce/wikitext
    config: str | None = None  # such as wikitext-2-raw-v1
    path: Annotated[str | None, Unkeyed()] = None
    column: str = "text"

    @model_validator(mode="after")
    def _one_place(self) -> "TextTable":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give path or hub, one of the two")
        return self


def _few(params: Text, factor: int) -> Text:
    """Few short windows."""
    return params.changed(
        length=min(params.length, 32),
        train_bytes=min(params.train_bytes or SMOKE_BYTES, SMOKE_BYTES),
        held_bytes=min(params.held_bytes or SMOKE_BYTES // 2, SMOKE_BYTES // 2),
    )


for _name, _params, _about in (
    ("stdlib-text", Text, "sources of the running Python's standard library, as bytes"),
    ("package-text", PackageText, "text files of an installed package: {name: package-text, package: torch}"),
    ("text-folder", TextFolder, "own text files, as bytes"),
    ("text-table", TextTable, "a Hugging Face set with a column of text, as bytes"),
):
    _builder = f"modnet.data.text:{_name.replace('-', '_')}"
    DATA.register(_name, _params, _builder, smoke=_few, about=_about, facts={"classes": 256})
