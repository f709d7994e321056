"""Recipes from files and from the package, with overrides from the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mllm_align.recipe.schema import Recipe, RecipeError, parse_recipe

PACKAGE = "mllm_align_recipes"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise RecipeError(f"key {twice[0]!r} stands twice in one section ({node.start_mark})")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def packaged_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with its text."""
    folder = resources.files(PACKAGE)
    files = (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in files}


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe.

    Args:
        name_or_path: A YAML file, or the name of a recipe that comes with the package.
        overrides: `section.key=value`, the value read as YAML; a list is entered by index: `objective.0.weight=0.5`.

    Raises:
        RecipeError: If there is no such recipe, it is not YAML, or says something unknown or of a wrong type.

    Example:
        >>> load_recipe("svco_llava15_7b", ["train.learning_rate=2e-5"])  # doctest: +SKIP
    """
    text, where, folder = _find(name_or_path)
    raw = _parse(text, where)
    for override in overrides:
        _override(raw, override)
    if overrides:
        text = f"{_header(text)}{yaml.safe_dump(raw, sort_keys=False)}"
    return parse_recipe(raw, text, folder)


def description(text: str) -> str:
    """The comment at the top of a recipe, without its comment signs."""
    return "\n".join(line.lstrip("# ").rstrip() for line in _header(text).splitlines())


def _header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _find(name_or_path: str | os.PathLike[str]) -> tuple[str, str, Path | None]:
    """Text, a name for messages, and the folder of a file."""
    path = Path(name_or_path)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path), path.resolve().parent
    known = packaged_recipes()
    name = path.name.removesuffix(".yaml") if path.parent in (Path("."), Path("recipes")) else str(path)
    if name in known:
        return known[name], name, None
    raise RecipeError(f"there is no file {str(path)!r}, and no recipe of that name; {known_recipes(name)}")


def known_recipes(name: str) -> str:
    """For messages: which packaged recipe may have been meant, and all that there are."""
    known = sorted(packaged_recipes())
    near = get_close_matches(name.removesuffix(".yaml"), known, n=1, cutoff=0.5)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}known: {', '.join(known)}"


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not YAML: {error}") from error


def _override(raw: Any, override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"--set {override!r} is not section.key=value")
    *parents, last = path.split(".")
    place = raw
    for number, key in enumerate(parents):
        try:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        except (IndexError, ValueError, AttributeError) as error:
            raise RecipeError(f"--set {override!r}: there is no {'.'.join(parents[: number + 1])}") from error
    value = _parse(text, f"--set {override!r}: {text!r}")
    try:
        place[int(last) if isinstance(place, list) else last] = value
    except (IndexError, ValueError, TypeError) as error:
        raise RecipeError(f"--set {override!r}: there is no {path}") from error
