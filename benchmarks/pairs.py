"""Pairs of an image and a caption, and a step of InfoNCE between what a model reads them as."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from mllm_align.objectives import InfoNCE
from mllm_align.trainers import AlignConfig, AlignTrainer
from results import shape_of
from shapes import SPECIAL, Shape, build_base, build_processor, fill_adapters, lora

# Instructions of the image and of the text: words of the vocabulary, which are a token each.
ASK_IMAGE = "w11 w12 w13 w14 w15 w16 w17"
ASK_TEXT = "w11 w12 w13 w18 w15 w16 w17"
CAPTION_WORDS = (5, 31)  # least, and one more than the most
TEMPERATURE = 0.05
AT_ONCE = 32  # pairs of one pass


class Pairs(NamedTuple):
    """How many pairs a step has."""

    count: int


def pair_shape(preset: str) -> Shape:
    """A preset with images of 16 tokens, so that many pairs are many rows rather than many tokens of each."""
    shape = shape_of(preset)
    side = 4 * shape.vision["patch_size"]
    return replace(shape, vision={**shape.vision, "image_size": side})


def tokens_at_once(shape: Shape) -> int:
    """Padded tokens of one pass: those of `AT_ONCE` images with their instruction, and some more."""
    return AT_ONCE * (shape.image_tokens + 20)


def pair_rows(shape: Shape, count: int) -> list[dict[str, Any]]:
    """Rows with a picture and a caption of random words."""
    rng = np.random.default_rng(count)
    side = shape.vision["image_size"]

    def caption() -> str:
        words = rng.integers(len(SPECIAL), shape.image_token, rng.integers(*CAPTION_WORDS))
        return " ".join(f"w{number}" for number in words)

    return [
        {
            "image": Picture.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),
            "caption": caption(),
        }
        for _ in range(count)
    ]


def objective() -> InfoNCE:
    """Both directions, at a fixed temperature."""
    return InfoNCE(
        text="caption",
        temperature=TEMPERATURE,
        learn_temperature=False,
        image_prompt=ASK_IMAGE,
        text_prompt=ASK_TEXT,
    )


class Contrast:
    """`AlignTrainer` with `InfoNCE`, set up as its `train` would.

    Args:
        shape: Of the model.
        **settings: Of `AlignConfig`.
    """

    def __init__(self, shape: Shape, **settings: Any) -> None:
        self.shape = shape
        base, self.folder = build_base(shape), tempfile.TemporaryDirectory()
        given = {"output_dir": self.folder.name, "use_cpu": shape.device == "cpu", "report_to": [], **settings}
        self.trainer: Any = AlignTrainer(
            base,
            objective(),
            AlignConfig(**given, disable_tqdm=True, check_data=False),
            processing_class=build_processor(shape),
            train_dataset=Dataset.from_list(
                pair_rows(shape, 2), features=Features(image=Image(), caption=Value("string"))
            ),
            peft_config=lora(shape, base),
        )
        self.model = self.trainer.model
        fill_adapters(self.model)
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model_wrapped = self.trainer.accelerator.prepare_model(self.model)

    def prepare(self, case: Pairs) -> Any:
        """One collated batch, as the training loop draws it."""
        collated = self.trainer.data_collator(pair_rows(self.shape, case.count))
        (batch,), _ = self.trainer.get_batch_samples(iter([collated]), 1, self.trainer.args.device)
        return batch

    def step(self, data: Any) -> float:
        """One `training_step`."""
        return float(self.trainer.training_step(self.trainer.model_wrapped, data))
