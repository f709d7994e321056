"""Recipes that come with the package: one YAML per run."""
