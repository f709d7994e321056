"""What a recipe may say, and one clear error for whatever else it says."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mllm_align.data.corrupt.dataset import Draws, draws_from
from mllm_align.data.mosaic import Mosaics, mosaics_from
from mllm_align.data.routes import Routes, routes_from
from mllm_align.data.shares import check_count, check_weight
from mllm_align.models import ModelArguments
from mllm_align.trainers.config import AlignConfig


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key and the mend."""


@dataclass
class DataSource:
    """One source of rows.

    Args:
        path: A file, a folder, the id of a dataset on the Hub, or rows of the rendered world: "world:pairs",
            "world:instructions", "world:correspondence", "world:documents", "world:captions", "world:references".
        split: Which split.
        columns: Names of columns as `{canonical: theirs}`.
        streaming: Read row by row.
        row_format: Name of a public row format to convert from.
        image_folder: Where relative image paths begin.
        name: Configuration of a Hub dataset.
        num_rows: Take so many rows; all where None (the world: 1,000).
        seed: Of the rendered world.
        distribution: Of the rendered world's scenes: prior, broken or balanced; of its correspondences: easy,
            medium or hard; of its documents: small or large.
        corrupt: Makes a contrast image of each row's own one: `{kind: crop}` with the options of that corruption
            (`mllm_align.data.corrupt`), `redraw` (anew in every epoch: true) and `replace` (of contrast images that
            the rows have already: false).
        mosaic: Puts the images of several rows together, each with its text for region-text contrast: the options of
            `mllm_align.data.mosaic` (`{sizes: [2, 3], side: 672, text: chosen, redraw: true}`).
        route_captions: Sorts captions by their tokens into short ones to contrast and long ones to train on: the
            options of `mllm_align.data.routing` (`{short: 30, long: 500, redraw: true}`; `prompt` is the objective's
            `image_prompt` where it is not given).
        references: Introduces every image by its name (`mllm_align.data.references`): true for the names in column
            `image_names` ("image 0", "image 1", ... without it), or a list of names.
        weight: Share of an epoch's rows, relative to the other sources; see `AlignConfig.source_weights`.
        cap: Rows that are used at the most, drawn by the seed; see `AlignConfig.source_caps`.
    """

    path: str
    split: str | None = None
    columns: dict[str, str] | None = None
    streaming: bool = False
    row_format: str | None = None
    image_folder: str | None = None
    name: str | None = None
    num_rows: int | None = None
    seed: int = 0
    distribution: str | None = None
    corrupt: dict[str, Any] | None = None
    mosaic: dict[str, Any] | None = None
    route_captions: dict[str, Any] | None = None
    references: bool | list[str] = False
    weight: float | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, not {self.num_rows}")
        if self.weight is not None:
            check_weight(self.weight, "weight")
        if self.cap is not None:
            check_count(self.cap, "cap")
        if self.streaming and self.cap is not None:
            raise ValueError("a cap draws among all rows: leave streaming out, or take the first rows with num_rows")
        if self.corrupt is not None and self.mosaic is not None:
            raise ValueError("a mosaic has no contrast image: keep one of corrupt and mosaic")
        if self.streaming and self.mosaic is not None:
            raise ValueError("a mosaic is made of rows from anywhere: leave streaming out")
        if self.route_captions is not None and (self.corrupt is not None or self.mosaic is not None):
            raise ValueError("captions are routed as they are: keep one of route_captions, corrupt and mosaic")
        if self.streaming and self.route_captions is not None:
            raise ValueError("captions are counted before training: leave streaming out")
        if self.route_captions is not None and self.references:
            raise ValueError("a caption stands behind one instruction: keep one of route_captions and references")

    def draws(self) -> Draws | None:
        """What `corrupt` says, or None.

        Raises:
            DataError: If the kind or an option is unknown, or a value makes no sense.
        """
        return None if self.corrupt is None else draws_from(self.corrupt)

    def mosaics(self) -> Mosaics | None:
        """What `mosaic` says, or None.

        Raises:
            DataError: If an option is unknown, or a value makes no sense.
        """
        return None if self.mosaic is None else mosaics_from(self.mosaic)

    def routes(self) -> Routes | None:
        """What `route_captions` says, or None.

        Raises:
            DataError: If an option is unknown, or a value makes no sense.
        """
        return None if self.route_captions is None else routes_from(self.route_captions)


@dataclass
class Recipe:
    """One run.

    Args:
        model: Which model, how quantised, what is adapted.
        data: Sources of training rows by name.
        objective: A list of `{name, weight, sources, options...}`; see `mllm_align.objectives.load`.
        train: Settings of `AlignConfig`, as given.
        eval_data: Sources of evaluation rows by name.
        text: The recipe as text, overrides included; saved with the run.
        folder: Where its file lies; a user's own objective is looked for there too. None for a packaged recipe.
    """

    model: ModelArguments
    data: dict[str, DataSource]
    objective: list[Any]
    train: dict[str, Any]
    eval_data: dict[str, DataSource] = field(default_factory=dict)
    text: str = ""
    folder: Path | None = None


SECTIONS = ("model", "data", "objective", "train", "eval_data")


def parse_recipe(raw: Any, text: str = "", folder: Path | None = None) -> Recipe:
    """A recipe from parsed YAML.

    Raises:
        RecipeError: For an unknown key (the nearest known one is suggested), a missing section or a wrong type.
    """
    raw = _mapping(raw, "the recipe")
    _refuse_unknown(raw, SECTIONS, "")
    for section in ("model", "data", "objective", "train"):
        if not raw.get(section):
            raise RecipeError(f"the recipe has no section {section!r}; it needs model, data, objective and train")
    evaluation = _sources(raw.get("eval_data") or {}, "eval_data")
    for name, source in evaluation.items():
        if source.weight is not None or source.cap is not None:
            raise RecipeError(f"eval_data.{name}: every row is evaluated once, so weight and cap are for data alone")
    return Recipe(
        model=_build(ModelArguments, raw["model"], "model"),
        data=_sources(raw["data"], "data"),
        objective=_objective(raw["objective"]),
        train=_checked(AlignConfig, raw["train"], "train"),
        eval_data=evaluation,
        text=text,
        folder=folder,
    )


def _objective(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise RecipeError("objective must be a list of {name: ..., weight: ..., sources: ...}")
    for place, part in enumerate(raw):
        if isinstance(part, str):
            continue
        where = f"objective.{place}"
        if "name" not in _mapping(part, where):
            raise RecipeError(f"{where} has no name: name an objective, or your own as 'package.module:Class'")
        for key, hint in {"name": str, "weight": float, "sources": str | list[str] | None}.items():
            if key in part:
                _typed(part[key], hint, f"{where}.{key}")
    return raw


def _sources(raw: Any, where: str) -> dict[str, DataSource]:
    found = {}
    for name, source in _mapping(raw, where).items():
        given = {"path": source} if isinstance(source, str) else source
        if "path" not in _mapping(given, f"{where}.{name}"):
            raise RecipeError(f"{where}.{name} has no path: name a file, a folder or a dataset on the Hub")
        found[str(name)] = built = _build(DataSource, given, f"{where}.{name}")
        for key, read in (
            ("corrupt", built.draws),
            ("mosaic", built.mosaics),
            ("route_captions", built.routes),
        ):
            try:
                read()
            except ValueError as error:
                raise RecipeError(f"{where}.{name}.{key}: {error}") from error
    return found


def _build(kind: type, raw: Any, where: str) -> Any:
    values = _checked(kind, raw, where)
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _checked(kind: type, raw: Any, where: str) -> dict[str, Any]:
    """The values of a section, each of the type that the dataclass says."""
    raw = _mapping(raw, where)
    _refuse_unknown(raw, _keys(kind), where)
    hints = typing.get_type_hints(kind)
    return {key: _typed(value, hints[key], f"{where}.{key}") for key, value in raw.items()}


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value, of exactly the type wanted; only a whole number may stand for a float."""
    try:
        # JSON is what YAML's plain values amount to; there, strict still takes 1 for a float.
        return TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{where} must be {_words(hint)}, not {type(value).__name__} {value!r}") from error


def _words(hint: Any) -> str:
    """A type hint as a reader would say it."""
    options = typing.get_args(hint) if "|" in str(hint) or typing.get_origin(hint) is typing.Union else (hint,)
    names = [
        "nothing" if option is type(None) else option.__name__ if isinstance(option, type) else str(option)
        for option in options
        if typing.get_origin(option) is not None or not _is_enum(option)
    ]
    return " or ".join(name.replace("typing.", "") for name in names)


def _is_enum(option: Any) -> bool:
    """Enums of transformers stand beside str, which takes the same words."""
    return isinstance(option, type) and hasattr(option, "__members__")


def _keys(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.init]


def _mapping(raw: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise RecipeError(f"{where} must be keys with values, not {type(raw).__name__} {raw!r}")
    return raw


def _refuse_unknown(raw: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in raw:
        if key not in known:
            path = f"{where}.{key}" if where else str(key)
            raise RecipeError(f"unknown key {path!r}: {_hint(str(key), known, where)}")


def _hint(key: str, known: list[str], where: str) -> str:
    """Where the key belongs if it is right but misplaced, else the nearest one here or anywhere."""
    places = {f"model.{name}": name for name in _keys(ModelArguments)}
    places |= {f"train.{name}": name for name in _keys(AlignConfig)}
    exact = [path for path, name in places.items() if name == key]
    here = {f"{where}.{name}" if where else name: name for name in known}
    for candidates in (here, places):
        near = difflib.get_close_matches(key, list(candidates.values()), n=1, cutoff=0.75)
        exact += [path for path, name in candidates.items() if name in near]
    if exact:
        return f"did you mean {exact[0]!r}?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {(f'{where}.' if where else '') + near[0]!r}?"
    return f"known are {', '.join(sorted(known))}"
