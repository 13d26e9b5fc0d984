"""A recipe, read and checked: everything that an experiment is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modnet.recipe.references import inputs_of, resolve_suite
from modnet.recipe.sources import Source
from modnet.recipe.stages import Evaluate, Stage
from modnet.recipe.writing import stage_manifest, to_yaml
from modnet.registry import Params


@dataclass(frozen=True)
class Recipe:
    """Data, models and stages by name; stages in an order in which each comes after what it needs.

    ``smoke`` and ``reductions`` tell of a recipe that was shrunk, ``notes`` hold what the reader should know (names
    that are deprecated), ``plugins`` the files that were imported for it.
    """

    name: str
    seed: int
    data: Mapping[str, Source]
    models: Mapping[str, Params]
    stages: Mapping[str, Stage]
    path: Path | None = None
    plugins: tuple[Path, ...] = ()
    reductions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    smoke: bool = False

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe under another seed; stages that pin theirs keep it."""
        return replace(self, seed=seed)

    def seed_of(self, stage: str) -> int:
        """The seed of a stage: its own if it is pinned, else the recipe's."""
        own = self.stages[stage].seed
        return self.seed if own is None else own

    def pinned(self) -> set[str]:
        """The stages that are the same for every seed of the recipe: their own and their inputs' seeds are pinned."""
        found: set[str] = set()
        for name, stage in self.stages.items():
            if stage.seed is not None and found.issuperset(inputs_of(stage, self)):
                found.add(name)
        return found

    def sources(self) -> dict[str, Source]:
        """Every data source that a stage reads, by the name that stage keys ask fingerprints for."""
        found = dict(self.data)
        for stage in self.stages.values():
            for name in stage.on if isinstance(stage, Evaluate) else ():
                source, suffix = resolve_suite(name, self)
                found.setdefault(name.removesuffix(f"-{suffix}") if suffix else name, source)
        return found

    def description(self) -> str:
        """One line: ``7 stages (train, incubate, …) on fashion-mnist``."""
        verbs = list(dict.fromkeys(stage.run for stage in self.stages.values()))
        sources = sorted({source.name for source in self.sources().values()})
        count = len(self.stages)
        return f"{count} stage{'s' * (count > 1)} ({', '.join(verbs)}) on {', '.join(sources)}"

    def manifest(self, stage: str) -> dict[str, Any]:
        """A stage with the models and data that it names, as plain data, for the record of what was run."""
        return stage_manifest(self, stage)

    def to_yaml(self) -> str:
        """The recipe with every default written out; loads again to equal stage keys."""
        return to_yaml(self)
