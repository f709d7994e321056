"""Objectives from what a recipe says: a short name or a user's import path, options, weights and sources."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mllm_align.objectives
from mllm_align.contract import Needs, Objective
from mllm_align.objectives.weighted import Weighted, class_to_name

RESERVED = ("name", "weight", "sources")

Spec = str | Mapping[str, Any] | Objective


def short_names() -> dict[str, Callable[..., Objective]]:
    """The objectives of this package by short name ("svco", "next_token")."""
    public = [getattr(mllm_align.objectives, name) for name in mllm_align.objectives.__all__]
    return {class_to_name(item): item for item in public if item is not Weighted}


def objective_from(spec: Spec | Sequence[Spec]) -> Objective:
    """Builds an objective.

    Args:
        spec: One of
            a name: "svco", or with a preset: "region_contrast.colva", or an import path
            "my_package.losses:MyObjective" (or with a dot for the colon) of a class or function that returns one;
            a mapping with such a `name` and the keyword arguments beside it, and optionally `weight` (1) and `sources`
            (one source or a list; every row);
            a list of these: their `Weighted` sum;
            an objective, which is handed back.

    Returns:
        The objective; a `Weighted` if `spec` is a list or has a weight or sources.

    Raises:
        ValueError: Unknown name or keyword (the nearest one is suggested), missing keyword, refused value.
        TypeError: `spec` is none of the above, or the path leads to something that is no objective.

    Example:
        >>> objective_from({"name": "rdpo", "beta": 0.2})
        RDPO(beta=0.2, text_weight=1.0, image_weight=1.0)
        >>> both = objective_from([{"name": "dpo", "beta": 0.2, "sources": "pairs"}, {"name": "next_token"}])
        >>> [(part.name, part.weight, part.sources) for part in both.parts]
        [('dpo', 1.0, ('pairs',)), ('next_token', 1.0, None)]
        >>> objective_from({"name": "image_preference", "both_way": True})
        Traceback (most recent call last):
        ...
        ValueError: objective 'image_preference' has no option 'both_way'; did you mean 'both_ways'? (beta, both_ways)
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return Weighted(*(_part(item) for item in spec))
    if isinstance(spec, Mapping) and ("weight" in spec or "sources" in spec):
        return Weighted(_part(spec))
    return _part(spec)[0]


def _part(spec: Spec) -> tuple[Any, ...]:
    """(objective, weight) or (objective, weight, sources)."""
    if isinstance(spec, str):
        return _build(spec, {}), 1.0
    if isinstance(spec, Mapping):
        if not isinstance(spec.get("name"), str):
            raise ValueError(f"an objective needs a `name`, got the keys {', '.join(map(str, spec)) or 'none'}")
        options = {key: value for key, value in spec.items() if key not in RESERVED}
        part = (_build(spec["name"], options), spec.get("weight", 1.0))
        return part if spec.get("sources") is None else (*part, spec["sources"])
    return _checked(spec, repr(spec)), 1.0


def _build(name: str, options: Mapping[str, Any]) -> Objective:
    make = _find(name)
    _check_options(name, make, options)
    return _checked(make(**options), name)


def _find(name: str) -> Callable[..., Any]:
    known = short_names()
    if name in known:
        return known[name]
    short, _, preset = name.partition(".")
    if short in known and ":" not in name:
        return _preset(known[short], name, preset)
    module_name, separator, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not separator:
        raise ValueError(
            f"unknown objective {name!r}{_nearest(name, known)} (known: {', '.join(sorted(known))}; "
            "your own: 'package.module:Class')"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own file fails to import is another mistake, and its message says so itself.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"objective {name!r}: no module {error.name!r}; is it installed or on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        raise ValueError(f"objective {name!r}: {module_name} has no {attribute!r}{_nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def _preset(kind: Any, name: str, preset: str) -> Callable[..., Any]:
    presets = sorted(key for key, value in vars(kind).items() if isinstance(value, classmethod) and key[0] != "_")
    if preset not in presets:
        there = f"it has {', '.join(presets)}" if presets else "it has none"
        raise ValueError(f"objective {name!r}: no preset {preset!r}{_nearest(preset, presets)} ({there})")
    return getattr(kind, preset)


def _check_options(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    if not callable(make):
        raise TypeError(f"objective {name!r} is neither a class nor a function that returns an objective")
    parameters = inspect.signature(make).parameters
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = [key for key, item in parameters.items() if item.kind in named]
    if not any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        for key in options:
            if key not in accepted:
                nearest = _nearest(key, (*accepted, *RESERVED))
                known = ", ".join(accepted) or "none"
                raise ValueError(f"objective {name!r} has no option {key!r}{nearest} ({known})")
    missing = [key for key in accepted if key not in options and parameters[key].default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"objective {name!r} needs a value for {', '.join(missing)}")


def _checked(made: Any, name: str) -> Objective:
    if isinstance(made, type) or not isinstance(made, Objective) or not isinstance(made.needs, Needs):
        raise TypeError(f"{name} is no objective: it must have `needs` (a Needs) and be called with two Signals")
    return made


def _nearest(word: str, known: Iterable[str]) -> str:
    by_lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
