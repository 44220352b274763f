"""One module per task. `find` is the table of recipes; a recipe's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from exporter.errors import UsageError
from exporter.recipes.base import Recipe

RECIPES: Mapping[str, str] = {
    "image-classification": "exporter.recipes.image:ImageRecipe",
    "text-classification": "exporter.recipes.text:TextRecipe",
    "text-embedding": "exporter.recipes.embedding:EmbeddingRecipe",
    "tabular-classification": "exporter.recipes.tabular:TabularRecipe",
    "regression": "exporter.recipes.regression:RegressionRecipe",
    "recommendation": "exporter.recipes.recommendation:RecommendationRecipe",
    "tabular-trees": "exporter.recipes.trees:TreesRecipe",
}


def find(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError, with the names there are."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    module, _, attribute = RECIPES[name].partition(":")
    recipe: Recipe = getattr(import_module(module), attribute)()
    return recipe
