"""Experiments as data: typed, strict, printable. Nothing in here imports torch."""

from __future__ import annotations

from modnet.recipe.keys import stage_keys
from modnet.recipe.loading import load_recipe
from modnet.recipe.problems import RecipeError
from modnet.recipe.recipe import Recipe
from modnet.recipe.references import inputs_of, resolve_suite
from modnet.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "Recipe",
    "RecipeError",
    "find_recipe",
    "inputs_of",
    "load_recipe",
    "resolve_suite",
    "shipped_recipes",
    "stage_keys",
]
