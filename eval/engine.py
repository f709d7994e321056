"""The model side of an evaluation: closed answers by log-probability and by generation, from the same prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mllm_align.contract import Batch, Needs, Prefix, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.masks import ChatRenderer, laid_out, response_ids
from mllm_align.data.schema import parse_row
from mllm_align.families import check_model, unwrap
from mllm_align.signals import EngineOptions, measure
from mllm_align.signals.feature_cache import FeatureCache
from mllm_align.signals.vision import holds_adapter
from mllm_align_eval.recent import RecentTensors


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        images: Pictures; none for the text-only arm.
        prompt: The user turn.
        choices: The closed answers, if there are any.
        system: A system prompt, or "".
        start: Words that the answer begins with, for generation alone. Give whole words: they are tokenised as in a
            response that begins with them, but for a tokenizer that would merge the last of them with what follows
            ("a re" of "a red"), since what follows is not known yet. White space at the end is left to the model.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    choices: tuple[str, ...]
    system: str = ""
    start: str = ""


class Generated(NamedTuple):
    """A text, and whether it was cut off at the limit.

    Behind a `start` it is what follows it, the space between them included: start + text is the whole answer.
    """

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

    Both methods read the prefixes of one collator, so they see the very same tokens and pixels, and a picture goes
    through the vision tower once while it is among those seen last.

    Args:
        model: The model, wrapped in adapters or not. Its weights must stay as they are while this engine is used.
        processor: Its processor.
        options: How log-probabilities are measured.
        remember: Whether a picture's tokens may serve calls to come; not where those mix other vision encoders.
    """

    def __init__(
        self, model: nn.Module, processor: Any, options: EngineOptions | None = None, *, remember: bool = True
    ) -> None:
        self.model, self.processor = model, processor
        self.family = check_model(model, processor)
        self.renderer = ChatRenderer(processor)
        self.options = options or EngineOptions()
        # Where no adapter changes what the tower says, all arms are shown the same image tokens.
        adapted = any(map(holds_adapter, self.family.vision_modules(unwrap(model))))
        if self.options.feature_cache is None and remember and not adapted:
            self.options = replace(self.options, feature_cache=FeatureCache(RecentTensors()))
        self._latest: tuple[list[tuple[Request, str]], Batch, View] | None = None
        self._collators = {view: self._collator(view) for view in (View("image", "chosen"), View(None, "chosen"))}

    @torch.no_grad()
    def choice_logps(self, requests: Sequence[Request]) -> list[list[float]]:
        """Per request the log-probability of each choice, end-of-turn token included.

        Raises:
            ValueError: If a request has a start: choices are whole answers.
        """
        if any(request.start for request in requests):
            raise ValueError("choices are scored as whole answers, so a request with choices to score has no start")
        rows = [(request, choice) for request in requests for choice in request.choices]
        batch, view = self._collate(rows)
        with _evaluating(self.model):
            signals, _ = measure(self.model, batch, options=self.options)
        flat = iter(signals.logps[view].double().tolist())
        return [[next(flat) for _ in request.choices] for request in requests]

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], max_new_tokens: int, settings: Mapping[str, Any] | None = None
    ) -> list[Generated]:
        """Answers of a batch, padded on the left, each until its end-of-turn or `max_new_tokens`; greedy ones by
        default.

        Args:
            requests: What is asked.
            max_new_tokens: Of each answer.
            settings: Of transformers' `generate`, over those of a greedy answer (`do_sample`, `num_beams`, ...).

        Raises:
            ValueError: If some requests show pictures and others none, or a chat template has no place for the start.
        """
        batch, _ = self._collate([(request, request.choices[0] if request.choices else ".") for request in requests])
        prefix_of_row = {branch.row: branch.prefix for branch in batch.branches}
        prefixes = [batch.prefixes[prefix_of_row[row]] for row in range(len(requests))]
        end = int(batch.branches[0].token_ids[-1])
        hf: Any = unwrap(self.model)
        starts = [self._start_ids(request) for request in requests]
        inputs = self._inputs(hf, batch, prefixes, starts)
        with _evaluating(self.model):
            output = hf.generate(
                **inputs,
                **({"do_sample": False, "num_beams": 1} | dict(settings or {})),
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted({end, *_eos_ids(hf)}),
                pad_token_id=self._pad_id,
            )
        stops = {end, *_eos_ids(hf)}
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [
            self._decode(tokens, stops, request.start, start)
            for request, tokens, start in zip(requests, answers, starts, strict=True)
        ]

    def _collate(self, rows: list[tuple[Request, str]]) -> tuple[Batch, View]:
        """The batch that scores each (request, response), and its only view.

        The latest one is kept, because the arms of a comparison are asked the same questions in turn.
        """
        if self._latest is None or not _same_rows(self._latest[0], rows):
            view = View("image" if rows[0][0].images else None, "chosen")
            if any(bool(request.images) != bool(rows[0][0].images) for request, _ in rows):
                raise ValueError("a batch of requests either shows pictures throughout or not at all")
            examples = [_row(request, response, str(number)) for number, (request, response) in enumerate(rows)]
            batch: Batch = self._collators[view](examples)["batch"]
            self._latest = rows, batch.to(unwrap(self.model).device), view
        return self._latest[1:]

    def _collator(self, view: View) -> AlignCollator:
        needs = Needs(views=(view,))
        return AlignCollator(self.processor, lambda source: needs, self.family.image_keys, self.family.token_keys)

    def _start_ids(self, request: Request) -> list[int]:
        """The tokens that a response beginning with the start begins with."""
        start = request.start.strip()
        if not start:
            return []
        row = parse_row(_row(request, start, "start"))
        text, response = self.renderer.render(row.messages, start, len(row.images), row.name)
        place = response.find(start)
        if place < 0:
            raise ValueError(
                f"the chat template rewrites the start of an answer, {start!r}, so it cannot be continued"
            )
        return response_ids(self.processor.tokenizer, laid_out(self.processor, text), response[: place + len(start)])

    def _inputs(
        self, hf: Any, batch: Batch, prefixes: Sequence[Prefix], starts: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Keyword arguments of `generate`: left-padded tokens, image tokens, and what positions are derived from."""
        whole = [
            torch.cat([prefix.input_ids, prefix.input_ids.new_tensor(start)])
            for prefix, start in zip(prefixes, starts, strict=True)
        ]
        inputs: dict[str, Any] = {
            "input_ids": _left_pad(whole, self._pad_id),
            "attention_mask": _left_pad([torch.ones_like(ids) for ids in whole], 0),
        }
        for key in prefixes[0].extras:
            value = self.family.response_values.get(key, 0)
            padded = [
                nn.functional.pad(prefix.extras[key], (0, len(start)), value=value)
                for prefix, start in zip(prefixes, starts, strict=True)
            ]
            inputs[key] = _left_pad(padded, 0)
        order = [image for prefix in prefixes for image in prefix.images]
        if order:
            cache = self.options.feature_cache
            encoded = cache.encode(self.family, hf, batch) if cache else self.family.encode_images(hf, batch.images)
            inputs["mm_encoder_outputs"] = self.family.mm_outputs(encoded, order)
            inputs |= _grids(batch.images, order)
        return inputs

    @property
    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _decode(self, tokens: list[int], stops: set[int], start: str, start_ids: list[int]) -> Generated:
        stop = next((place for place, token in enumerate(tokens) if token in stops), None)
        decode = self.processor.tokenizer.decode
        if not start_ids:
            return Generated(decode(tokens[:stop], skip_special_tokens=True).strip(), stop is None)
        before = decode(start_ids, skip_special_tokens=True)
        whole = decode([*start_ids, *tokens[:stop]], skip_special_tokens=True).rstrip()
        # A decoder that tidies up white space may change what stands before, too.
        text = whole[len(before) :] if whole.startswith(before) else decode(tokens[:stop], skip_special_tokens=True)
        return Generated(text if start == start.rstrip() else text.lstrip(), stop is None)


def _row(request: Request, response: str, name: str) -> dict[str, Any]:
    """The canonical row of a request that is answered so."""
    row = {"id": name, "images": list(request.images), "prompt": request.prompt, "chosen": response}
    return row | ({"system": request.system} if request.system else {})


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
