"""The loop of X-Former's first stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from mllm_align.data.pixels import ImageEncoder
from mllm_align.trainers.tower.rows import CaptionedImages
from mllm_align.trainers.x_former.config import XFormerConfig
from mllm_align.trainers.x_former.frozen import Autoencoder, OwnEncoder
from mllm_align.trainers.x_former.model import LOSSES, StageOne, Texts, detail_share
from mllm_align.trainers.x_former.words import Words


class Collator:
    """Rows to a batch: what the image processor makes of pictures, and tokens of texts.

    Args:
        encode: The vision-language model's processor, for pictures.
        tokenizer: Of the texts.
        words: Says which tokens of our own there are, and how long texts may be.
        rows: Say which text and which picture a row has.
    """

    def __init__(self, encode: ImageEncoder, tokenizer: Any, words: Words, rows: CaptionedImages) -> None:
        self.encode, self.tokenizer, self.rows = encode, tokenizer, rows
        self.max_length, self.end = words.max_length, words.end_token

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`images` (per row the processor's tensors), `tokens` and `present` (B, L), `pairs` (numbers)."""
        numbers = [item["row"] for item in items]
        texts = [self._tokens(self.rows.texts[self.rows.text[number]]) for number in numbers]
        tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        present = torch.zeros_like(tokens, dtype=torch.bool)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
            present[row, : len(text)] = True
        return {
            "images": [dict(self.encode(item["image"]).tensors) for item in items],
            "tokens": tokens,
            "present": present,
            "pairs": [[int(self.rows.picture[number]), int(self.rows.text[number])] for number in numbers],
        }

    def _tokens(self, text: str) -> list[int]:
        """A place for how it begins, the text, its end."""
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [0, *found[: self.max_length], self.end]


class XFormerTrainer(Trainer):
    """Trains the X-Former and the words' side; both encoders are frozen and stay out of checkpoints.

    Beside the four losses it logs `detail_share` (see `detail_share`), of the last batch before each line.

    Args:
        model: What trains.
        args: Settings.
        rows: To train on.
        collator: Of these rows.
        own: The vision-language model's encoder.
        autoencoder: The masked one.
        **others: Of `transformers.Trainer`.
    """

    def __init__(
        self,
        model: StageOne,
        args: XFormerConfig,
        rows: CaptionedImages,
        collator: Collator,
        own: OwnEncoder,
        autoencoder: Autoencoder,
        **others: Any,
    ) -> None:
        super().__init__(model, args, train_dataset=rows, data_collator=collator, **others)
        self.own, self.autoencoder = own, autoencoder
        self._seen: dict[str, list[Tensor]] = defaultdict(list)
        self._last: tuple[Tensor, Tensor] | None = None
        # The losses are means over rows, of all processes already where it matters.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the four losses."""
        base, pixels = self.own(inputs["images"])
        seen = self.autoencoder(pixels)
        stage = self.accelerator.unwrap_model(model)
        base = stage.mixer.own(base)
        seen = seen._replace(latent=stage.mixer.own(seen.latent))
        pairs = [(int(picture), int(text)) for picture, text in inputs["pairs"]]
        found = model(base, seen, Texts(inputs["tokens"], inputs["present"]), pairs)
        for name in LOSSES:
            self._seen[name].append(found[name].detach())
        self._last = base, seen.latent[:, 1:]
        return (found["loss"], found) if return_outputs else found["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds each loss of its own, and how much the queries say that depends on the autoencoder."""
        if self._last is not None and "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._seen.items()}
            logs["detail_share"] = detail_share(self.accelerator.unwrap_model(self.model).mixer, *self._last)
            self._seen.clear()
        super().log(logs, *args, **kwargs)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Those of `Trainer` without the temperature and the queries, which decay would pull towards 0."""
        left_out = ("temperature", "queries")
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(left_out)]
