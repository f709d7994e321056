"""Several adapters on one load of a base where some have a mixer beside them: who is mixed, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from torch import nn

from mllm_align.families import inner, unwrap
from mllm_align.models.adapters import load_adapter
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.loading import load_model
from mllm_align.models.mixing import MIXER_PATH, find_mixer
from mllm_align.signals import NamedAdapter
from mllm_align.vision.mixed_vision import mixed_of, switched_off
from mllm_align.vision.mixer_files import WEIGHTS_FILE, attach_saved, carried_by, check_fingerprint, read_settings


def load_arms(arguments: ModelArguments, adapters: Mapping[str, str]) -> tuple[Any, Any, dict[str | None, bool]]:
    """A base with adapters on it, each by a name; a mixer that lies beside them is attached first.

    Args:
        arguments: The base model and its quantisation.
        adapters: Folders by name.

    Returns:
        `(model, processor, mixed)`; `mixed` says of the base (None) and of each adapter whether it is to be asked with
        its vision encoders as they are. False where a mixer came with other adapters: it is to be switched off then
        (`mixing_without(model, None)`).

    Raises:
        ValueError: If a part cannot be loaded, mixers are not the same, or one cannot be switched off for the others.
    """
    found = {name: place for name, folder in adapters.items() if (place := find_mixer(folder)) is not None}
    model, processor = load_model(arguments)
    brought = bool(found) and mixed_of(inner(model)) is None
    if brought:
        _check_alike(found)
        first = next(iter(found.values()))
        mixed = attach_saved(model, first, processor, train=False)
        what = None if mixed.kind.keeps_tokens else f"{type(mixed.kind).__name__} makes another number of tokens"
        what = "it carries weights of an earlier stage" if any(map(carried_by, found.values())) else what
        if what is not None:
            raise ValueError(
                f"the mixer in {str(first)!r} cannot share a load with the base: {what}; write a model of its own "
                "(mllm-align export), evaluate that by itself, and compare with mllm-align report"
            )
    for name, folder in adapters.items():
        model = load_adapter(model, folder, name=name)
    for name, place in found.items():
        with NamedAdapter(name).on(model):
            check_fingerprint(model, processor, place)
    return model, processor, {name: name in found or not brought for name in (None, *adapters)}


def _check_alike(found: Mapping[str, Any]) -> None:
    """One mixer is attached for all: it must be of one kind, and its weights one's own or the same."""
    first, *others = found.items()
    settings = {name: {**read_settings(place), "fingerprint": None} for name, place in found.items()}
    configs: list[Any] = [PeftConfig.from_pretrained(str(place)) for place in found.values()]
    trained = [MIXER_PATH in (getattr(config, "modules_to_save", None) or ()) for config in configs]
    for name, place in others:
        if settings[name] != settings[first[0]]:
            raise ValueError(
                f"the adapters {first[0]!r} and {name!r} have different mixers: evaluate them in two runs"
            )
        if not all(trained) and (place / WEIGHTS_FILE).read_bytes() != (first[1] / WEIGHTS_FILE).read_bytes():
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
    with switched_off(mixed, off):
        yield
