"""PaliGemma and PaliGemma 2: a prompt sees all of itself, responses see backwards; positions begin at 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mllm_align.families.base import inner
from mllm_align.families.tiles import Tiled


@dataclass(frozen=True, kw_only=True)
class PaliGemma(Tiled):
    """`token_type_ids` are 0 in a prompt, 1 in a response; the text model is Gemma, or Gemma2 (PaliGemma 2)."""

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """By the `image_seq_length` of the processor and of its image processor."""
        processor.image_seq_length = processor.image_processor.image_seq_length = tokens

    def prefix_positions(
        self,
        model: nn.Module,
        input_ids: Tensor,
        images: Sequence[Mapping[str, Tensor]],
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        """(1, P) from 1 on."""
        return super().prefix_positions(model, input_ids, images, extras) + 1

    def two_way_blocks(self, input_ids: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """(P,) the whole prompt, images and text, is one block."""
        return torch.zeros_like(input_ids)

    def hidden_states(self, model: nn.Module, *, attention_mask: Any, **inputs: Any) -> Tensor:
        """As everywhere; Gemma2's mask for each kind of layer goes past the outer forward, which takes but one."""
        if not isinstance(attention_mask, dict):
            return super().hidden_states(model, attention_mask=attention_mask, **inputs)
        outer = inner(model)
        if hasattr(outer, "reading"):  # a mixer has layers in the language model
            with outer.reading(inputs) as taken:
                return self._past_outer(outer, attention_mask, taken)
        return self._past_outer(outer, attention_mask, inputs)

    @staticmethod
    def _past_outer(outer: Any, attention_mask: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
        ids = inputs["input_ids"]
        is_image = ids == outer.config.image_token_id
        # The image token may lie behind the end of the vocabulary.
        embeds = outer.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if "mm_encoder_outputs" in inputs:
            images = inputs["mm_encoder_outputs"]["image"].pooler_output
            embeds = embeds.masked_scatter(is_image.unsqueeze(-1), images.to(embeds))
        return outer.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=inputs["position_ids"], use_cache=False
        ).last_hidden_state

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """As everywhere, drawn into the range that Gemma2 allows."""
        logits = super().logits(model, hidden)
        config: Any = model.config
        cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


PALIGEMMA = PaliGemma(
    name="PaliGemma",
    model_types=("paligemma",),
    token_keys=("token_type_ids",),
    first_linear="linear",
    response_values={"token_type_ids": 1},
    window_ends_blocks=False,
    image_tokens="one per patch of one square view, then `<bos>`; the prompt sees all of itself",
)
