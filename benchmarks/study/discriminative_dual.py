"""The dual encoder that the discriminative study compares with: CLIP of the base's size, trained whole on its rows.

Its vision tower begins as the base's own and its word embeddings as those of the base's language model, so both sides
start with the same eyes and words; the rest of the text tower begins at random. It has the base's tokenizer, the same
rows in the same order, the same false captions, loss, schedule and number of steps, and a learning rate of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, get_cosine_schedule_with_warmup, set_seed

from discriminative_arms import ARMS, TEMPERATURE, Run
from discriminative_rows import caption_order, captions
from flops import count_flops
from mixing_towers import normalised
from mllm_align.objectives.info_nce import info_nce
from mllm_align.objectives.temperature import bounded_scale, log_scale_of
from mllm_align_eval.items import Picture
from mllm_align_eval.similarity import Vectors, loaded
from training import WARMUP

TEXT_LENGTH = 64
# CLIP's layers have two matrices where those of the language model have three: half as many again makes up for it.
MLP_FACTOR = 1.5
BATCH = 100


class Dual(nn.Module):
    """A CLIP on the base's processor, with its temperature.

    Args:
        base: A LLaVA whose tower and word embeddings it begins with.
        processor: Of the base.
    """

    def __init__(self, base: Any, processor: Any) -> None:
        super().__init__()
        self.processor = processor
        vision, text = base.config.vision_config, base.config.text_config
        # The text is read off a token of its own behind it; as id 2 CLIP would take the largest id for the end.
        self.end = text.vocab_size
        config = CLIPConfig(
            vision_config=vision.to_dict(),
            text_config={
                "hidden_size": text.hidden_size,
                "intermediate_size": int(MLP_FACTOR * text.intermediate_size),
                "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads,
                "vocab_size": text.vocab_size + 1,
                "max_position_embeddings": TEXT_LENGTH,
                "pad_token_id": processor.tokenizer.pad_token_id,
                "bos_token_id": processor.tokenizer.bos_token_id,
                "eos_token_id": self.end,
            },
            projection_dim=text.hidden_size,
        )
        self.clip: Any = CLIPModel(config)
        self.clip.logit_scale.requires_grad_(False)  # the loss has its own
        self.clip.vision_model.load_state_dict(base.model.vision_tower.state_dict())
        with torch.no_grad():
            words = base.get_input_embeddings().weight
            self.clip.text_model.embeddings.token_embedding.weight[: self.end] = words
        self.log_scale = log_scale_of(TEMPERATURE, True)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(N, d) unit vectors of (N, 3, H, W) uint8."""
        return _unit(self.clip.get_image_features(pixel_values=normalised(pixels, self.processor)))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d) unit vectors."""
        ids = self.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ids = [torch.tensor([*own[: TEXT_LENGTH - 1], self.end]) for own in ids]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        there = nn.utils.rnn.pad_sequence([torch.ones_like(own) for own in ids], batch_first=True)
        return _unit(self.clip.get_text_features(input_ids=padded, attention_mask=there))

    @torch.no_grad()
    def images(self, pictures: Sequence[Picture | Image.Image], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some images."""
        parts = [
            self.embed_images(pixels([loaded(each) for each in pictures[start : start + BATCH]]))
            for start in range(0, len(pictures), BATCH)
        ]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def texts(self, texts: Sequence[str], /) -> Vectors:
        """(N, d) float32 vectors of length 1 of some texts."""
        parts = [self.embed_texts(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return torch.cat(parts).numpy()


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def contrast(dual: Dual, rows: Sequence[dict[str, Any]], shown: Tensor, *, negatives: bool) -> Tensor:
    """0-d loss of some rows, the mean of both directions.

    Args:
        dual: The encoder.
        rows: With `caption` and `negatives`.
        shown: (B, 3, H, W) uint8, their pictures.
        negatives: Whether the false captions are further ones that every picture is told from.
    """
    images, texts = dual.embed_images(shown), dual.embed_texts([row["caption"] for row in rows])
    false = [text for row in rows for text in row["negatives"]] if negatives else []
    others = (dual.embed_texts(false), torch.ones(len(false), dtype=torch.bool)) if false else None
    present = torch.ones(len(rows), dtype=torch.bool)
    return info_nce(images, texts, present, bounded_scale(dual.log_scale), negatives=others)[0].mean()


def train_dual(run: Run, base: Any, processor: Any) -> tuple[Dual, dict[str, Any]]:
    """The trained dual encoder of a run, and what it cost."""
    arm, rows, steps = ARMS[run.arm], captions(), caption_order(run)
    set_seed(run.seed)
    dual = Dual(base, processor).train()
    trained = [each for each in dual.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, run.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP * len(steps)), len(steps))
    shown, log, seconds, flops = pixels([row["image"] for row in rows]), [], 0.0, 0

    def step(own: Sequence[int]) -> float:
        loss = contrast(dual, [rows[row] for row in own], shown[list(own)], negatives=arm.negatives)
        loss.backward()
        return loss.item()

    for number, own in enumerate(steps):
        if number == 0:
            flops = count_flops(lambda own=own: step(own))
            optimizer.zero_grad()
        started = time.perf_counter()
        log.append(step(own))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - started
    every = max(1, len(log) // 60)
    return dual.eval(), {
        "seconds": round(seconds, 1),
        "flops_per_step": flops,
        "trained_parameters": sum(each.numel() for each in trained),
        "parameters": sum(each.numel() for each in dual.clip.parameters()),
        "losses": [round(loss, 3) for loss in log[::every]],
    }


def _unit(output: Any) -> Tensor:
    return F.normalize(output if isinstance(output, Tensor) else output.pooler_output, dim=-1)
