"""Recipes: which tensor of a cell written by hand is which gate, in a small TOML file.

What a recipe can say is in ``docs/recipes.md``, key by key, with an example of each. The ones that
come with the package are in ``built_in/``.
"""

from __future__ import annotations

from fastlstm.sources.recipe.entries import Entry, Recipe, Stacked
from fastlstm.sources.recipe.file import built_in_recipes, read_recipe

__all__ = ["Entry", "Recipe", "Stacked", "built_in_recipes", "read_recipe"]
