"""Prompts that refer to objects: where one is named, the language model reads its vector in place of a word's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image, ImageOps
from tokenizers import AddedToken
from torch import Tensor

from mllm_align.contract import OBJECT_TOKEN
from mllm_align.families import check_model, unwrap
from mllm_align.vision.object_expert import ObjectExpert
from mllm_align.vision.regions import Located


class OnImage(Located, Protocol):
    """Where an object is, and on which image of its prompt."""

    @property
    def image(self) -> int:
        """Counted from 0."""
        ...


class ObjectInputs(NamedTuple):
    """A batch of prompts that refer to objects.

    Attributes:
        tensors: Arguments of the model's `forward` and `generate`, padded on the left to T tokens.
        row: (N,) the prompt of each placeholder.
        place: (N,) where it is in it, 0 .. T - 1.
        vectors: (N, width) what is read there.
    """

    tensors: Mapping[str, Tensor]
    row: Tensor
    place: Tensor
    vectors: Tensor


class ObjectPrompts:
    """Gives a model the objects that prompts refer to.

    The text `<object>` stands for one object: the first for the first one, and so on. It becomes one token, whose
    input embedding is the vector that the expert and its adapter make of the object, as in CoLVA (2025),
    https://arxiv.org/abs/2501.04670. The model's vocabulary and the processor that is given stay as they are.

    Args:
        model: Of any family, wrapped in adapters or not.
        processor: The model's.
        expert: As `load_expert` gives it.

    Raises:
        ValueError: If there is no expert, or it is for another width than the model's.

    Example:
        >>> model, processor = load_model(base, adapter="runs/colva")  # doctest: +SKIP
        >>> prompts = ObjectPrompts(model, processor, load_expert("runs/colva"))  # doctest: +SKIP
        >>> row = parse_row(with_object_tokens(raw))  # of mllm_align.data  # doctest: +SKIP
        >>> prompts.generate([row.messages], [row.images], [row.objects["image"]], max_new_tokens=8)  # doctest: +SKIP
        ['2']
    """

    def __init__(self, model: Any, processor: Any, expert: ObjectExpert) -> None:
        """Checks that they fit."""
        check_model(model, processor)
        if not isinstance(expert, ObjectExpert):
            raise ValueError(
                f"prompts that refer to objects need the object expert that the model was trained with, not "
                f"{expert!r}: load_expert(folder of the run)"
            )
        self.model, self.hf, self.expert = model, unwrap(model), expert
        width = self.hf.config.get_text_config().hidden_size
        if expert.adapter.widths[1] != width:
            raise ValueError(
                f"the object expert's adapter is for a language model of width {expert.adapter.widths[1]}, this one's "
                f"is {width}: load the expert that lies beside this model"
            )
        # A copy: the placeholder's number may lie beyond the model's vocabulary, and the model never sees it.
        self.processor = copy.deepcopy(processor)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.add_tokens([AddedToken(OBJECT_TOKEN, normalized=False, special=True)], special_tokens=True)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.placeholder = self.tokenizer.convert_tokens_to_ids(OBJECT_TOKEN)

    def inputs(
        self,
        prompts: Sequence[str | Sequence[Any]],
        images: Sequence[Sequence[Image.Image]],
        objects: Sequence[Sequence[OnImage]],
    ) -> ObjectInputs:
        """The batch of some prompts.

        Args:
            prompts: Each a text with image placeholders as the processor reads it, or messages for its chat template.
            images: Of each prompt, in order of its placeholders.
            objects: Of each prompt, in order of its `<object>`.

        Raises:
            ValueError: Naming the prompt, if it has another number of placeholders than of objects, or an object is on
                no image of its prompt or covers nothing of it.
        """
        shown = [[_upright(image, number) for image in own] for number, own in enumerate(images)]
        texts = [self._rendered(prompt) for prompt in prompts]
        for number, (text, own) in enumerate(zip(texts, objects, strict=True)):
            if text.count(OBJECT_TOKEN) != len(own):
                raise ValueError(
                    f"prompt {number} has {text.count(OBJECT_TOKEN)} placeholder(s) {OBJECT_TOKEN} for {len(own)} "
                    "object(s): write one for each, in their order"
                )
        vectors = [self._vectors(*each) for each in zip(shown, objects, range(len(texts)), strict=True)]
        begun = self.tokenizer.bos_token is not None and all(t.startswith(self.tokenizer.bos_token) for t in texts)
        told = self.processor(
            text=texts,
            images=shown if any(shown) else None,
            padding=True,
            add_special_tokens=not begun,
            return_tensors="pt",
        ).to(self.hf.device)
        ids = told["input_ids"]
        row, place = (ids == self.placeholder).nonzero(as_tuple=True)
        # Any word of the vocabulary will do: what is looked up of it is not read.
        told["input_ids"] = ids.masked_fill(ids == self.placeholder, self.tokenizer.eos_token_id)
        dtype = self.hf.get_input_embeddings().weight.dtype
        return ObjectInputs(dict(told), row, place, torch.cat(vectors).to(self.hf.device, dtype))

    @contextmanager
    def read(self, given: ObjectInputs) -> Iterator[None]:
        """Inside, a call of the model with `given.tensors` reads the objects; gradients reach their vectors.

        Raises:
            RuntimeError: If the model was called with other prompts, or not at all.
        """
        rows, width = given.tensors["input_ids"].shape
        told, seen = given.tensors["input_ids"][given.row, given.place], []

        def replace(module: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Tensor) -> Any:
            ids = arguments[0] if arguments else keywords["input"]
            if ids.dim() != 2 or ids.shape[1] < width or ids.shape[0] % rows:
                return None  # a token that is generated, with the prompt in the cache
            # Beams and samples of one prompt lie side by side.
            copies = ids.shape[0] // rows
            row = (given.row[:, None] * copies + torch.arange(copies, device=given.row.device)).flatten()
            place = given.place.repeat_interleave(copies)
            if not torch.equal(ids[row, place], told.repeat_interleave(copies)):
                return None
            seen.append(copies)
            return output.index_put((row, place), given.vectors.repeat_interleave(copies, dim=0).to(output.dtype))

        handle = self.hf.get_input_embeddings().register_forward_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        if not seen:
            raise RuntimeError("the model read no prompt that refers to these objects: call it with given.tensors")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str | Sequence[Any]],
        images: Sequence[Sequence[Image.Image]],
        objects: Sequence[Sequence[OnImage]],
        **settings: Any,
    ) -> list[str]:
        """The answers to some prompts; greedy unless `settings` (of transformers' `generate`) say otherwise.

        Raises:
            ValueError: As `inputs`.
        """
        given = self.inputs(prompts, images, objects)
        greedy = {"do_sample": False, "num_beams": 1, "pad_token_id": self.tokenizer.pad_token_id}
        training = self.model.training
        self.model.eval()
        try:
            with self.read(given):
                output = self.hf.generate(**given.tensors, **(greedy | settings))
        finally:
            self.model.train(training)
        new = output[:, given.tensors["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _rendered(self, prompt: str | Sequence[Any]) -> str:
        if isinstance(prompt, str):
            return prompt
        return self.processor.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)

    def _vectors(self, images: Sequence[Image.Image], objects: Sequence[OnImage], number: int) -> Tensor:
        """(objects, width) in their order."""
        for place, each in enumerate(objects):
            if not 0 <= each.image < len(images):
                raise ValueError(
                    f"prompt {number}, object {place}: it is on image {each.image} of a prompt with {len(images)} "
                    "image(s), counted from 0"
                )
        found: dict[int, Tensor] = {}
        for image in dict.fromkeys(each.image for each in objects):
            own = [place for place, each in enumerate(objects) if each.image == image]
            (told,) = self.expert([images[image]], [[objects[place] for place in own]])
            for place, vector, valid in zip(own, told.values, told.valid.tolist(), strict=True):
                if not valid:
                    raise ValueError(
                        f"prompt {number}, object {place}: it covers nothing of its image (box "
                        f"{[round(float(side), 3) for side in objects[place].box]}, shares of width and height)"
                    )
                found[place] = vector
        width = self.expert.adapter.widths[1]
        return torch.stack([found[place] for place in range(len(objects))]) if found else torch.zeros(0, width)


def _upright(image: Any, number: int) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise ValueError(f"prompt {number}: images are PIL images, got {type(image).__name__}: open it")
    return ImageOps.exif_transpose(image).convert("RGB")
