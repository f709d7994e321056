"""The model side of an evaluation: closed answers by log-probability and by generation, from the same prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mllm_align.contract import Batch, Needs, Prefix, View
from mllm_align.data.collator import AlignCollator
from mllm_align.families import check_model, unwrap
from mllm_align.signals import EngineOptions, measure


@dataclass(frozen=True)
class Request:
    """What is asked: pictures (none for the text-only arm), the user turn, the closed answers."""

    images: tuple[Image.Image, ...]
    prompt: str
    choices: tuple[str, ...]


class Generated(NamedTuple):
    """A text, and whether it was cut off at the limit."""

    text: str
    truncated: bool


class Engine(Protocol):
    """What the runner asks of a model."""

    def choice_logps(self, requests: Sequence[Request]) -> list[list[float]]:
        """Per request the log-probability of each choice as the whole answer."""
        ...

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
        """Per request the greedy answer."""
        ...


class ModelEngine:
    """An `Engine` on a Hugging Face vision-language model.

    Both methods read the prefixes of one collator, so they see the very same tokens and pixels, and each distinct
    picture of a batch goes through the vision tower once.

    Args:
        model: The model, wrapped in adapters or not.
        processor: Its processor.
        options: How log-probabilities are measured.
    """

    def __init__(self, model: nn.Module, processor: Any, options: EngineOptions | None = None) -> None:
        self.model, self.processor = model, processor
        self.family = check_model(model, processor)
        self.options = options or EngineOptions()
        self._latest: tuple[list[tuple[Request, str]], Batch, View] | None = None

    @torch.no_grad()
    def choice_logps(self, requests: Sequence[Request]) -> list[list[float]]:
        """Per request the log-probability of each choice, end-of-turn token included."""
        rows = [(request, choice) for request in requests for choice in request.choices]
        batch, view = self._collate(rows)
        with _evaluating(self.model):
            signals, _ = measure(self.model, batch, options=self.options)
        flat = iter(signals.logps[view].double().tolist())
        return [[next(flat) for _ in request.choices] for request in requests]

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
        """Greedy answers of a batch, padded on the left, each until its end-of-turn or `max_new_tokens`."""
        batch, _ = self._collate([(request, request.choices[0] if request.choices else ".") for request in requests])
        prefix_of_row = {branch.row: branch.prefix for branch in batch.branches}
        prefixes = [batch.prefixes[prefix_of_row[row]] for row in range(len(requests))]
        end = int(batch.branches[0].token_ids[-1])
        hf: Any = unwrap(self.model)
        inputs = self._inputs(hf, batch, prefixes)
        with _evaluating(self.model):
            output = hf.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted({end, *_eos_ids(hf)}),
                pad_token_id=self._pad_id,
            )
        stops = {end, *_eos_ids(hf)}
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._decode(tokens, stops) for tokens in answers]

    def _collate(self, rows: list[tuple[Request, str]]) -> tuple[Batch, View]:
        """The batch that scores each (request, response), and its only view.

        The latest one is kept, because the arms of a comparison are asked the same questions in turn.
        """
        if self._latest is None or not _same_rows(self._latest[0], rows):
            view = View("image" if rows[0][0].images else None, "chosen")
            needs = Needs(views=(view,))
            collator = AlignCollator(
                self.processor,
                needs_for=lambda source: needs,
                image_keys=self.family.image_keys,
                token_keys=self.family.token_keys,
            )
            examples = [
                {"id": str(number), "images": list(request.images), "prompt": request.prompt, "chosen": response}
                for number, (request, response) in enumerate(rows)
            ]
            batch: Batch = collator(examples)["batch"]
            self._latest = rows, batch.to(unwrap(self.model).device), view
        return self._latest[1:]

    def _inputs(self, hf: Any, batch: Batch, prefixes: Sequence[Prefix]) -> dict[str, Any]:
        """Keyword arguments of `generate`: left-padded tokens, image tokens, and what positions are derived from."""
        inputs: dict[str, Any] = {
            "input_ids": _left_pad([prefix.input_ids for prefix in prefixes], self._pad_id),
            "attention_mask": _left_pad([torch.ones_like(prefix.input_ids) for prefix in prefixes], 0),
        }
        for key in prefixes[0].extras:
            inputs[key] = _left_pad([prefix.extras[key] for prefix in prefixes], 0)
        order = [image for prefix in prefixes for image in prefix.images]
        if order:
            encoded = self.family.encode_images(hf, batch.images)
            inputs["mm_encoder_outputs"] = self.family.mm_outputs(encoded, order)
            inputs |= _grids(batch.images, order)
        return inputs

    @property
    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _decode(self, tokens: list[int], stops: set[int]) -> Generated:
        stop = next((place for place, token in enumerate(tokens) if token in stops), None)
        text = self.processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        return Generated(text.strip(), stop is None)


def _same_rows(first: Sequence[tuple[Request, str]], second: Sequence[tuple[Request, str]]) -> bool:
    """Whether these are the same requests, as objects, with the same responses."""
    return len(first) == len(second) and all(
        a is b and left == right for (a, left), (b, right) in zip(first, second, strict=True)
    )


def _left_pad(sequences: Sequence[Tensor], value: int) -> Tensor:
    """(B, longest)."""
    longest = max(sequence.numel() for sequence in sequences)
    return torch.stack([nn.functional.pad(s, (longest - s.numel(), 0), value=value) for s in sequences])


def _grids(images: Sequence[Mapping[str, Tensor]], order: Sequence[int]) -> dict[str, Tensor]:
    """Integer tensors that describe the pictures (their grids), from which some families derive token positions."""
    keys = [key for key, value in images[order[0]].items() if not value.is_floating_point()]
    return {key: torch.cat([images[index][key] for index in order]) for key in keys if key.endswith("grid_thw")}


def _eos_ids(model: Any) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
