"""A recipe with every verb, and functions that read recipes from text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modnet.recipe import Recipe, RecipeError, load_recipe
from modnet.registry import TABLES

FULL = """\
name: full
seed: 0
data:
  whole: {name: fashion-mnist}
  small: {name: fashion-mnist, per_class: 300}
models:
  vit_s: {name: vit, width: 64, depths: [1, 1, 1, 1]}
  vit_l: {name: vit, width: 64, depths: [2, 2, 2, 2]}
  thin:  {name: vit, width: 48, depths: [1, 1, 1, 1]}
defaults:
  data: whole
  batch: 128
  optimizer: {name: muon, lr: 0.02}
  schedule: {name: cosine, warmup: 10%}
  augment: [crop, {name: erase, p: 0.1}]
stages:
  verdict:  {run: evaluate, of: [student, baseline, hinton], on: [fashion-mnist, small-r]}
  meta:     {run: train, model: vit_s, epochs: 2, seed: 0}
  modules:  {run: incubate, model: vit_l, meta: meta, epochs: 1, seed: 0}
  teacher:  {run: assemble, from: modules, epochs: 4, seed: 0}
  transfer: {run: distill, student: thin, teacher: teacher, meta: meta, epochs: 2}
  student:  {run: assemble, from: transfer, epochs: 25, data: small}
  imitate:  {run: distill, method: features, student: thin, teacher: teacher, epochs: 2}
  hinton:   {run: distill, method: kd, student: thin, teacher: teacher, epochs: 2}
  baseline: {run: train, model: thin, epochs: 25, data: small}
"""

Read = Callable[..., Recipe]
Wrong = Callable[..., list[str]]


@pytest.fixture
def full() -> str:
    return FULL


@pytest.fixture
def recipe(tmp_path: Path) -> Read:
    """``recipe(text, *overrides, smoke=…)`` reads a recipe called r.yaml."""

    def read(text: str = FULL, *overrides: str, **options: Any) -> Recipe:
        file = tmp_path / "r.yaml"
        file.write_text(text)
        return load_recipe(file, overrides, **options)

    return read


@pytest.fixture
def errors(recipe: Read, tmp_path: Path) -> Wrong:
    """``errors(text, *overrides)`` gives the lines of the message, with the file's folder left out."""

    def find(text: str = FULL, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            recipe(text, *overrides)
        assert caught.value.exit_code == 2
        title, *lines = str(caught.value).split("\n")
        assert title.endswith("an error:" if len(lines) == 1 else f"{len(lines)} errors:")
        return [line.strip().replace(f"{tmp_path}/", "") for line in lines]

    return find


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what a test registers."""
    tables = list(TABLES.values())
    held = [(dict(t._entries), dict(t._families), dict(t._deprecated)) for t in tables]
    yield
    for table, (entries, families, deprecated) in zip(tables, held, strict=True):
        table._entries, table._families, table._deprecated = entries, families, deprecated
