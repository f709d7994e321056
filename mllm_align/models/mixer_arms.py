"""Several adapters on one load of a base where some have a mixer beside them: who is mixed, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from torch import Tensor, nn

from mllm_align.families import inner, unwrap
from mllm_align.models.adapters import load_adapter
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.loading import load_model, load_processor
from mllm_align.models.mixing import MIXER_PATH, find_mixer
from mllm_align.models.soft_prompts import read_soft_prompts
from mllm_align.models.soft_tokens import put_soft_prompts
from mllm_align.signals import NamedAdapter
from mllm_align.vision.mixed_vision import MixedVision, mixed_of, switched_off
from mllm_align.vision.mixer_files import (
    WEIGHTS_FILE,
    attach_saved,
    carried_by,
    check_fingerprint,
    kind_name,
    read_settings,
)

STOCK = "stock_parts"  # what `load_arms` leaves at a model


class Stock(NamedTuple):
    """What a model with a mixer that adapters brought needs to be the base again.

    Attributes:
        processor: The base's own; it lays prompts out for as many image tokens as the base has.
        weights: Tensors of the model that the mixer's files changed (an earlier stage trained them), each with the
            base's values.
    """

    processor: Any
    weights: tuple[tuple[Tensor, Tensor], ...]


def load_arms(
    arguments: ModelArguments, adapters: Mapping[str, str], encoders: Sequence[str] | None = None
) -> tuple[Any, Any, dict[str | None, bool]]:
    """A base with adapters on it, each by a name; a mixer that lies beside them is attached first.

    Args:
        arguments: The base model and its quantisation.
        adapters: Folders by name.
        encoders: Where the further vision encoders are now, if they were moved.

    Returns:
        `(model, processor, mixed)`; `mixed` says of the base (None) and of each adapter whether it is to be asked with
        its vision encoders as they are. False where a mixer came with other adapters: it is to be switched off then
        (`mixing_without(model, None)`), and asked by `stock_processor(model)`.

    Raises:
        ValueError: If a part cannot be loaded, or mixers or soft prompts are not the same.
    """
    found = {name: place for name, folder in adapters.items() if (place := find_mixer(folder)) is not None}
    model, processor = load_model(arguments, encoders=encoders)
    brought = bool(found) and mixed_of(inner(model)) is None
    if brought:
        _check_alike(found)
        first = next(iter(found.values()))
        state = model.state_dict()
        kept = tuple((state[name], state[name].clone()) for name in carried_by(first) if name in state)
        attach_saved(model, first, processor, encoders=encoders, train=False)
        setattr(model, STOCK, Stock(load_processor(arguments.model_name_or_path or "", arguments), kept))
    soft = {name: read_soft_prompts(folder) for name, folder in adapters.items()}
    for each in filter(None, soft.values()):
        put_soft_prompts(model, processor, each)
    # PEFT takes no adapter without trainable tokens on top of one with.
    for name, folder in sorted(adapters.items(), key=lambda pair: soft[pair[0]] is not None):
        # It is compared with the base that it was trained on.
        with mixing_without(model, None if brought and name not in found else ()):
            model = load_adapter(model, folder, name=name)
    for name, place in found.items():
        with NamedAdapter(name).on(model):
            check_fingerprint(model, processor, place)
    return model, processor, {name: name in found or not brought for name in (None, *adapters)}


def stock_processor(model: nn.Module) -> Any:
    """The processor that a model is asked with while its mixer is off; None where no adapter brought the mixer."""
    stock = getattr(unwrap(model), STOCK, None)
    return None if stock is None else stock.processor


def is_mixing(model: nn.Module) -> bool:
    """Whether a mixer takes part now."""
    mixed = mixed_of(inner(unwrap(model)))
    return mixed is not None and mixed.enabled


def mixer_facts(model: nn.Module) -> dict[str, Any] | None:
    """What of a model's mixer no tensor holds: None where there is none.

    Returns:
        `kind`, `options`, and of the further encoders `encoders`, as words, and `read`, all but their names.
    """
    mixed = mixed_of(inner(unwrap(model)))
    if mixed is None:
        return None
    specs = [getattr(each, "original_module", each).spec for each in mixed.seeing]
    read = [spec._replace(model="", revision=None)._asdict() for spec in specs]
    encoders = [str(spec) for spec in specs]
    return {"kind": kind_name(mixed.kind), "options": mixed.kind.options, "encoders": encoders, "read": read}


def _check_alike(found: Mapping[str, Any]) -> None:
    """One mixer is attached for all: it must be of one kind, and its weights one's own or the same."""
    first, *others = found.items()
    settings = {name: {**read_settings(place), "fingerprint": None} for name, place in found.items()}
    configs: list[Any] = [PeftConfig.from_pretrained(str(place)) for place in found.values()]
    trained = [MIXER_PATH in (getattr(config, "modules_to_save", None) or ()) for config in configs]
    own = all(trained) and not any(map(carried_by, found.values()))
    for name, place in others:
        if settings[name] != settings[first[0]]:
            raise ValueError(
                f"the adapters {first[0]!r} and {name!r} have different mixers: evaluate them in two runs"
            )
        if not own and (place / WEIGHTS_FILE).read_bytes() != (first[1] / WEIGHTS_FILE).read_bytes():
            raise ValueError(f"the mixers of {first[0]!r} and {name!r} have other weights: evaluate them in two runs")


@contextmanager
def mixing_without(model: nn.Module, off: Sequence[int] | None = ()) -> Iterator[None]:
    """Inside, some further encoders (counted from 0) do not take part; with None the whole mixer; else all do.

    Raises:
        ValueError: If there is no such encoder, or no mixer to take it out of; said with numbers from 1.
    """
    if off is not None and not off:
        yield
        return
    mixed = mixed_of(inner(unwrap(model)))
    if mixed is None:
        raise ValueError("the model has no mixer: there is no further vision encoder to switch off")
    for number in off or ():
        if not 0 <= number < len(mixed.seeing):
            raise ValueError(
                f"there is no further vision encoder {number + 1}: the mixer has 1 to {len(mixed.seeing)}"
            )
    stock = getattr(unwrap(model), STOCK, None)
    with _as_stock(mixed, stock) if off is None and stock is not None else switched_off(mixed, off):
        yield


@contextmanager
def _as_stock(mixed: MixedVision, stock: Stock) -> Iterator[None]:
    """Inside, nothing is mixed, and what an earlier stage trained is as the base has it."""
    before, carried = mixed.enabled, [tensor.clone() for tensor, _ in stock.weights]
    mixed.enabled = False
    with torch.no_grad():
        for tensor, value in stock.weights:
            tensor.copy_(value)
    try:
        yield
    finally:
        mixed.enabled = before
        with torch.no_grad():
            for (tensor, _), value in zip(stock.weights, carried, strict=True):
                tensor.copy_(value)
