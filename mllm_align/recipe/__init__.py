"""One run as a short YAML file: parsed into typed dataclasses and checked before anything loads."""

from mllm_align.recipe.build import build_trainer, run_recipe
from mllm_align.recipe.load import description, load_recipe, packaged_recipes
from mllm_align.recipe.plan import Plan, plan_of
from mllm_align.recipe.schema import DataSource, Recipe, RecipeError

__all__ = [
    "DataSource",
    "Plan",
    "Recipe",
    "RecipeError",
    "build_trainer",
    "description",
    "load_recipe",
    "packaged_recipes",
    "plan_of",
    "run_recipe",
]
