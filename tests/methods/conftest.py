"""A small m2mKD experiment on the digits, of which tests take the stages they need."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modnet import experiment
from modnet.chain import Chain
from modnet.engine.artifacts import load_chain
from modnet.methods.base import Inputs
from modnet.methods.costs import ancestors
from modnet.recipe import load_recipe
from modnet.store import Store

RECIPE = """
name: small
data: {all: {name: digits, per_class: 24}}
models:
  meta: {name: vit, width: 16, heads: 2, depths: [1, 1, 1], patch: 2}
  large: {name: vit, width: 16, heads: 2, depths: [2, 1, 2], patch: 2}
  small: {name: vit, width: 8, heads: 2, depths: [1, 2, 1], patch: 2, drop_path: 0.2}
defaults: {data: all, batch: 48, optimizer: muon, augment: [crop]}
stages:
  base: {run: train, model: meta, seed: 0}
  modules: {run: incubate, model: large, meta: base, epochs: 2, drop_path: 0.1, seed: 0}
  teacher: {run: assemble, from: modules, seed: 0}
  transfer: {run: distill, student: small, teacher: teacher, meta: base}
  student: {run: assemble, from: transfer}
  mimic: {run: distill, method: features, student: small, teacher: teacher}
  folded: {run: assemble, from: mimic, kd: {teacher: teacher}}
  hinton: {run: distill, method: kd, student: small, teacher: teacher}
"""


@dataclass
class Lab:
    """Runs the recipe's stages below a folder."""

    folder: Path
    recipe_file: Path

    def run(self, *overrides: str, only: str | None = None, **options: Any) -> Inputs:
        """Bring the recipe, with overrides, up to date as far as stage ``only``, and give what stages read from."""
        recipe = load_recipe(self.recipe_file, overrides)
        session = experiment.open_session(recipe, self.folder, Console(file=io.StringIO()))
        wanted = list(recipe.stages)
        if only is not None:
            needed = ancestors(only, recipe)
            wanted = [name for name in wanted if name in needed]
        experiment.bring_up_to_date(session, wanted)
        return Inputs(recipe, Store(self.folder / "store"), session.keys, lambda text: None)

    def chain(self, inputs: Inputs, stage: str, name: str = "network") -> Chain:
        """A chain that a stage left."""
        return load_chain(inputs.folder(stage), name)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab whose base, modules and teacher are trained."""
    lab = _lab(tmp_path_factory.mktemp("lab"))
    lab.run(only="teacher")
    return lab


@pytest.fixture
def new_lab(tmp_path: Path) -> Callable[[], Lab]:
    """Build a lab in a folder of its own."""
    return lambda: _lab(tmp_path)


def _lab(folder: Path) -> Lab:
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    return Lab(folder / "runs", path)
