"""From a recipe to a trainer: everything that can be is checked before the model is loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import set_seed

from mllm_align.contract import Objective, needs_for
from mllm_align.data.corrupt import corrupted
from mllm_align.data.loading import WORLD, load_rows, world_rows
from mllm_align.data.mosaic import MosaicDataset
from mllm_align.data.references import interleaves, with_references
from mllm_align.data.routing import route_captions
from mllm_align.models import load_model, load_processor, lora_config, model_path
from mllm_align.objectives.load import objective_from
from mllm_align.recipe.schema import DataSource, Recipe, RecipeError
from mllm_align.trainers import AlignConfig, AlignTrainer
from mllm_align.trainers.checkpoint import claim_output_dir, last_complete_checkpoint
from mllm_align.trainers.data import join_sources
from mllm_align.trainers.save import RECIPE_FILE
from mllm_align.trainers.setup import check_sources
from mllm_align.trainers.shares import source_shares

logger = logging.getLogger(__name__)

DRAWING = ("source_weights", "source_caps", "redraw_caps", "epoch_rows")


def run_recipe(recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> AlignTrainer:
    """Trains a recipe, and saves model, processor, card and recipe in its output folder.

    Args:
        recipe: Checked.
        overwrite: Allow an output folder with something in it.
        resume: Continue from the last complete checkpoint of the output folder.

    Returns:
        The trainer, after training.

    Raises:
        RecipeError: If the objective, a source or a setting is refused.
        ValueError: If the output folder has something in it, there is nothing to resume from, or model, data and
            objective do not fit together.
    """
    arguments = build_arguments(recipe, overwrite=overwrite)
    # The trainer asks the same, but only after minutes of loading.
    if resume:
        _refuse_changed(recipe, Path(last_complete_checkpoint(arguments.output_folder)))
    else:
        claim_output_dir(arguments.output_folder, overwrite=overwrite, main_process=False)
    trainer = build_trainer(recipe, overwrite=overwrite)
    trainer.train(resume_from_checkpoint=True if resume else None)
    trainer.save_model()
    trainer.save_state()
    return trainer


def _refuse_changed(recipe: Recipe, checkpoint: Path) -> None:
    """Refuses to resume a run whose checkpoint another model, other data, draws or another objective made."""
    kept = checkpoint / RECIPE_FILE
    if not kept.is_file():
        return
    before, now = (_deciding(yaml.safe_load(text) or {}) for text in (kept.read_text(encoding="utf-8"), recipe.text))
    for key, value in now.items():
        if before[key] != value:
            raise RecipeError(
                f"{checkpoint} was made with another {key}: {before[key]!r}, now {value!r}; "
                "resume with the recipe it was made with, or name another train.output_dir"
            )


def _deciding(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe a run cannot go on without: its sections, and the settings that say which rows are drawn."""
    train = raw.get("train") or {}
    seed = train.get("seed") if train.get("data_seed") is None else train["data_seed"]
    drawing = {f"train.{name}": train.get(name) or None for name in DRAWING}
    sections = {name: raw.get(name) for name in ("model", "data", "objective")}
    return sections | drawing | {"train.data_seed, or else train.seed": seed}


def build_trainer(recipe: Recipe, *, overwrite: bool = False) -> AlignTrainer:
    """The trainer of a recipe, with model, processor, data and objective, ready to train.

    Args:
        recipe: Checked.
        overwrite: Allow an output folder with something in it.

    Raises:
        RecipeError: If the objective, a source or a setting is refused.
        ValueError: If model, data and objective do not fit together.
    """
    objective = build_objective(recipe)
    arguments = build_arguments(recipe, overwrite=overwrite)
    model_arguments = recipe.model
    with _naming("model"):
        model_path(model_arguments.model_name_or_path)
    if model_arguments.load_in_4bit and not model_arguments.use_peft:
        raise RecipeError(
            "model.load_in_4bit is true and model.use_peft is not: 4-bit weights do not train, adapters on them do; "
            "set model.use_peft: true, or model.load_in_4bit: false"
        )
    train, evaluation = (_load_sources(recipe, objective, section) for section in (recipe.data, recipe.eval_data))
    with _naming("data"):
        source_shares(join_sources(train, arguments.shares))
    # Before the model: an adapter draws its first weights from this seed.
    set_seed(arguments.seed)
    model, processor = load_model(replace(model_arguments, use_peft=False), device=arguments.device)
    _check_references(recipe, processor)
    return AlignTrainer(
        model,
        objective,
        arguments,
        processing_class=processor,
        train_dataset=train,
        eval_dataset=evaluation or None,
        peft_config=lora_config(model, model_arguments) if model_arguments.use_peft else None,
        recipe=recipe.text,
    )


def build_objective(recipe: Recipe) -> Objective:
    """The objective; a user's own module is looked for beside the recipe and in the working folder too.

    Raises:
        RecipeError: If it is unknown, a value of it is refused, or its sources are not those of the data.
    """
    with _naming("objective"):
        _make_importable(recipe)
        objective = objective_from(recipe.objective)
    with _naming("data"):
        check_sources(objective, list(recipe.data))
    with _naming("eval_data"):
        check_sources(objective, list(recipe.eval_data), complete=False)
    return objective


def build_arguments(recipe: Recipe, *, overwrite: bool = False) -> AlignConfig:
    """The settings of the run.

    Raises:
        RecipeError: If a value is out of its range.
    """
    settings = dict(recipe.train)
    if not settings.get("output_dir"):
        raise RecipeError("train.output_dir is missing: name the folder that the run writes to")
    if overwrite:
        settings["overwrite_output_dir"] = True
    for setting, key in (("source_weights", "weight"), ("source_caps", "cap")):
        told = {name: getattr(source, key) for name, source in recipe.data.items() if getattr(source, key) is not None}
        if told and settings.get(setting):
            raise RecipeError(f"train.{setting} and data.{next(iter(told))}.{key} say the same: keep one of them")
        settings |= {setting: told} if told else {}
    with _naming("train"):
        return AlignConfig(**settings)


def load_source(name: str, source: DataSource) -> Any:
    """The rows of one source, with references, and with contrast images or mosaics to be made where it asks for them.

    Raises:
        DataError: If they cannot be read.
        RecipeError: If the world is asked for rows that it does not have, or contrast images cannot be made.
    """
    with _naming(f"data.{name}.corrupt"):
        draws = source.draws()
    rows = _read_source(name, source)
    if source.references:
        with _naming(f"data.{name}.references"):
            rows = with_references(rows, None if source.references is True else source.references)
    mosaics = source.mosaics()
    if mosaics is not None:
        with _naming(f"data.{name}.mosaic"):
            return MosaicDataset(rows, mosaics)
    if draws is None:
        return rows
    with _naming(f"data.{name}.corrupt"):
        return corrupted(rows, draws.corruption, redraw=draws.redraw, replace=draws.replace)


def _load_sources(recipe: Recipe, objective: Objective, sources: Mapping[str, DataSource]) -> dict[str, Any]:
    """The rows of some sources, their captions routed where they ask for it."""
    tokenizer: Any = None
    found = {}
    for name, source in sources.items():
        routes = source.routes()
        found[name] = rows = load_source(name, source)
        if routes is None:
            continue
        tokenizer = tokenizer or load_processor(recipe.model.model_name_or_path or "", recipe.model).tokenizer
        with _naming(f"data.{name}.route_captions"):
            prompt = routes.prompt or _image_prompt(objective, name)
            options = {"short": routes.short, "long": routes.long, "redraw": routes.redraw}
            found[name] = routed = route_captions(rows, tokenizer, prompt, **options)
        if PartialState().is_main_process:
            # A warning, to be seen at the usual level: what is left out is not trained on.
            logger.warning("data.%s: %s", name, routed.counts)
    return found


def _check_references(recipe: Recipe, processor: Any) -> None:
    """Refuses references where a chat template would take images away from their names."""
    sources = {**recipe.data, **recipe.eval_data}.items()
    named = next((name for name, source in sources if source.references), None)
    if named is not None and not interleaves(processor):
        raise RecipeError(
            f"data.{named}.references: the chat template puts images before all text, so that no name would stand "
            "beside its image: save the model with a template that leaves images in their places"
        )


def _image_prompt(objective: Objective, source: str) -> str:
    """The instruction behind which the objective reads the images of a source.

    Raises:
        ValueError: If there is none, or several.
    """
    features = needs_for(objective, source).features
    prompts = {each.prompt for each in features if each.source == "embedding" and each.column == "image"} - {None}
    if len(prompts) != 1:
        told = " and ".join(map(repr, sorted(map(str, prompts)))) or "no instruction"
        raise ValueError(f"the objective reads images behind {told}: say which with prompt")
    (prompt,) = prompts
    return str(prompt)


def _read_source(name: str, source: DataSource) -> Any:
    if source.path.startswith(WORLD):
        with _naming(f"data.{name}"):
            return world_rows(source.path, source.num_rows, source.seed, source.distribution, source.split)
    rows: Any = load_rows(
        source.path,
        source.split,
        source.columns,
        source.streaming,
        row_format=source.row_format,
        image_folder=source.image_folder,
        name=source.name,
    )
    if source.num_rows is None:
        return rows
    return rows.take(source.num_rows) if source.streaming else rows.select(range(min(source.num_rows, len(rows))))


def _make_importable(recipe: Recipe) -> None:
    """A user's own modules become importable, behind everything that is installed, and stay so for data workers."""
    names = [part if isinstance(part, str) else part["name"] for part in recipe.objective]
    if all(":" not in name and "." not in name for name in names):
        return
    for folder in (recipe.folder, Path.cwd()):
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Errors inside name the section of the recipe that they come from."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{section}: {error}") from error
