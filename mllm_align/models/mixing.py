"""Which mixer a model gets when it is loaded: a recipe's, that beside an adapter, or that of an earlier stage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers.utils.hub import cached_file

from mllm_align.families import inner, unwrap
from mllm_align.models.arguments import ModelArguments
from mllm_align.vision.attach import attach, mixer_from
from mllm_align.vision.encoder_gradients import keep_read_parameters, read_linears
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import (
    SETTINGS_FILE,
    WEIGHTS_FILE,
    attach_saved,
    carried_by,
    check_fingerprint,
    has_mixer,
    kind_name,
    load_mixer_weights,
    read_settings,
)
from mllm_align.vision.mixers import MIXERS

MIXER_PATH, ENCODERS_PATH = "model.vision_mixer.mixer", "model.vision_mixer.encoders"


def attach_mixer(
    base: Any,
    processor: Any,
    arguments: ModelArguments,
    adapter: str | os.PathLike[str] | None,
    encoders: Sequence[str] | None,
    name: str,
) -> Path | None:
    """Attaches the mixer that belongs to a model, if one does.

    Args:
        base: Just loaded, without adapters.
        processor: Of the model.
        arguments: What is wanted.
        adapter: That is loaded next; a mixer beside it goes before one that `arguments` name.
        encoders: Where the further encoders are now.
        name: Folder or id of the base; a mixer may lie beside an exported model.

    Returns:
        The folder with the outputs' fingerprint of what will have been loaded then, or None.

    Raises:
        ValueError: If it cannot be attached, or is said twice in different words.
    """
    beside = find_mixer(name)
    if adapter is not None:
        found = find_mixer(adapter)
        if arguments.mixer is not None:
            raise ValueError(
                f"the adapter in {os.fspath(adapter)!r} has "
                + ("its own mixer" if found is not None else "no mixer beside it")
                + ": leave mixer out"
            )
        if found is not None or beside is not None:
            attach_saved(base, found or beside or name, processor, encoders=encoders)
        return found
    if beside is not None and (arguments.mixer is not None or arguments.start_from is not None):
        raise ValueError(f"{name!r} has a mixer already: leave mixer and start_from out, or begin with its stock base")
    if arguments.start_from is not None:
        base_of_stage(base, processor, arguments, encoders)
        return None
    if arguments.mixer is not None:
        settings = mixer_from(arguments.mixer)
        if encoders is not None:
            raise ValueError("encoders say where those of a saved mixer are; a new one has them in `mixer`")
        if settings.weights is not None:
            # What it was built with is its own; what is said besides (dropout) holds for this run.
            settings = settings._replace(options={**read_settings(settings.weights)["options"], **settings.options})
        attach(base, settings, None, processor)
        if settings.weights is not None:
            load_mixer_weights(base, settings.weights, processor)
        return None
    if beside is not None:
        attach_saved(base, beside, processor, encoders=encoders)
    return beside


def find_mixer(folder: str | os.PathLike[str]) -> Path | None:
    """Where the mixer beside an adapter lies, in a folder or on the Hub; None where there is none."""
    if Path(folder).is_dir():
        return Path(folder) if has_mixer(folder) else None
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        settings = cached_file(os.fspath(folder), SETTINGS_FILE, **quietly)
    except (OSError, ValueError):  # no name of a repository either: who loads the rest says so
        return None
    if settings is None:
        return None
    cached_file(os.fspath(folder), WEIGHTS_FILE)
    return Path(settings).parent


def base_of_stage(base: Any, processor: Any, arguments: ModelArguments, encoders: Sequence[str] | None) -> None:
    """Makes what an earlier stage trained part of the base.

    Raises:
        ValueError: If there is no such run, it trained LoRA layers too, its mixer is another than the one wanted, or
            the outputs are not those that were saved with it.
    """
    from mllm_align.models.adapters import load_adapter

    folder = str(arguments.start_from)
    try:
        config = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"start_from: no run in {folder!r}: adapter_config.json could not be read") from error
    if getattr(config, "target_modules", None) != DUMMY_TARGET_MODULES:
        raise ValueError(
            f"start_from: the run in {folder!r} trained LoRA layers; merge it into a model of its own first "
            "(mllm-align export), and name that as model_name_or_path"
        )
    found = find_mixer(folder)
    if found is None:
        raise ValueError(
            f"start_from: the run in {folder!r} has no mixer; merge it into a model of its own first (mllm-align "
            "export), and name that as model_name_or_path"
        )
    settings = None if arguments.mixer is None else mixer_from(arguments.mixer)
    mixed = attach_saved(base, found, processor, encoders=encoders, train=settings is None or settings.train)
    _check_same(mixed, settings, folder, moved=encoders is not None)
    trained = list(getattr(config, "modules_to_save", None) or ())
    # PEFT switches off what trains beside an adapter, here all that is to train next.
    trains = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    load_adapter(base, folder).merge_and_unload()
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name in trains)
    for number, encoder in enumerate(mixed.seeing):
        if f"{ENCODERS_PATH}.{number}" in trained:
            encoder.changed = True
    earlier = carried_by(found)
    names = [name for name in base.state_dict() if any(name.startswith(f"{each}.") for each in trained)]
    base.carried_weights = sorted({*earlier, *(name for name in names if not name.startswith("model.vision_mixer."))})
    check_fingerprint(base, processor, found)


def _check_same(mixed: Any, settings: Any, folder: str, *, moved: bool) -> None:
    """Refuses another mixer than that of the stage before; what of its encoders trains may differ, and is set."""
    if settings is None:
        return

    def read(spec: Any) -> str:
        return str(spec._replace(train="frozen", **({"model": ""} if moved else {})))

    known = [read(encoder.spec) for encoder in mixed.seeing]
    wanted = [read(spec) for spec in settings.encoders]
    if not isinstance(mixed.kind, MIXERS[settings.kind]) or known != wanted:
        raise ValueError(
            f"start_from: the mixer in {folder!r} is {kind_name(mixed.kind)} of {', '.join(known)}, model.mixer "
            f"says {settings.kind} of {', '.join(wanted)}: leave mixer out, or name the same"
        )
    for name, value in settings.options.items():
        if json.dumps(mixed.kind.options.get(name)) != json.dumps(value) and name != "encoder_dropout":
            raise ValueError(
                f"start_from: the mixer in {folder!r} has {name} {mixed.kind.options.get(name)!r}, model.mixer says "
                f"{value!r}: leave it out, or name the same"
            )
    for encoder, spec in zip(mixed.seeing, settings.encoders, strict=True):
        if encoder.spec.train == spec.train:
            continue
        encoder.spec = encoder.spec._replace(train=spec.train)
        encoder.requires_grad_(spec.train == "full")
        if spec.train == "full":
            keep_read_parameters(encoder)
        encoder.eval()


def trained_with_adapter(model: nn.Module) -> list[str]:
    """Paths of the mixer, where it trains, and of encoders that train whole: for PEFT's `modules_to_save`."""
    mixed = mixed_of(inner(unwrap(model)))
    if mixed is None:
        return []
    trains = any(parameter.requires_grad for parameter in mixed.mixer.parameters())
    whole = [number for number, encoder in enumerate(mixed.seeing) if encoder.spec.train == "full"]
    return [*([MIXER_PATH] if trains else []), *(f"{ENCODERS_PATH}.{number}" for number in whole)]


def encoder_targets(model: nn.Module) -> list[str]:
    """Names of the linear layers of further encoders that train with LoRA."""
    mixed = mixed_of(inner(unwrap(model)))
    if mixed is None:
        return []
    return [
        f"{ENCODERS_PATH}.{number}.model.{name}"
        for number, encoder in enumerate(mixed.seeing)
        if encoder.spec.train == "lora"
        for name in read_linears(encoder)
    ]
