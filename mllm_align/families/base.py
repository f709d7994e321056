"""What the rest of the package asks of a model family, answered once for the common case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

SCOPES = ("language", "projector", "vision")


@dataclass(frozen=True)
class EncodedImages:
    """The LLM-ready tokens of the distinct images of a batch: per image (T_i, d)."""

    tokens: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the family table: where the parts of a model are, and what its processor produces.

    Paths are dotted and start at the `...ForConditionalGeneration` module.

    Attributes:
        name: Name used in messages and tables.
        model_types: Values of `config.model_type` that belong here.
        language_model: The text decoder without its head.
        tower: The vision encoder.
        projector: The module between the two; may lie inside the tower.
        image_keys: Processor outputs that hold pixels or describe images, cut per image.
        token_keys: Processor outputs beside `input_ids` with one entry per prompt token.
        packs: Whether several responses may share one prefix under a block mask.
        unpacked_reason: Why not, where `packs` is False.
    """

    name: str
    model_types: tuple[str, ...]
    language_model: str = "model.language_model"
    tower: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    image_keys: tuple[str, ...] = ("pixel_values",)
    token_keys: tuple[str, ...] = ()
    packs: bool = True
    unpacked_reason: str = ""

    position_rows: ClassVar[int] = 1

    # -- images ------------------------------------------------------------------------------------------------

    def join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The processor tensors of several images as one call's arguments, concatenated on the leading axis."""
        return {key: torch.cat([image[key] for image in images]) for key in images[0]}

    def encode_images(self, model: nn.Module, images: Sequence[Mapping[str, Tensor]]) -> EncodedImages:
        """The LLM-ready tokens of each image, by one call of the model's own `get_image_features`.

        Args:
            model: The unwrapped Hugging Face model.
            images: Per image the processor's tensors.
        """
        joined = self.join_images(images)
        tower = self.module(model, self.tower)
        floats = {key: value.is_floating_point() for key, value in joined.items()}
        joined = {key: value.to(tower.device, tower.dtype if floats[key] else None) for key, value in joined.items()}
        output = inner(model).get_image_features(**joined, return_dict=True)
        return EncodedImages(tuple(self.split_tokens(output, images)))

    def split_tokens(self, output: BaseModelOutputWithPooling, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """`pooler_output` cut per image; a family whose entries are not images overrides it."""
        return list(output.pooler_output)

    def mm_outputs(self, encoded: EncodedImages, order: Sequence[int]) -> dict[str, BaseModelOutputWithPooling]:
        """What `forward` and `generate` take as `mm_encoder_outputs`, for placeholders that appear in `order`."""
        tokens: Any = [encoded.tokens[index] for index in order]
        return {"image": BaseModelOutputWithPooling(pooler_output=tokens)}

    # -- tokens ------------------------------------------------------------------------------------------------

    def prefix_positions(
        self,
        model: nn.Module,
        input_ids: Tensor,
        images: Sequence[Mapping[str, Tensor]],
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        """(k, P) position ids of one prefix; a response after it continues at the maximum + 1."""
        return torch.arange(input_ids.numel(), device=input_ids.device).unsqueeze(0)

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """(N, V) logits of hidden states (N, d), as the model's own head computes them."""
        return model.get_output_embeddings()(hidden)  # type: ignore[operator]

    # -- parts -------------------------------------------------------------------------------------------------

    @staticmethod
    def module(model: nn.Module, path: str) -> nn.Module:
        """The submodule at a dotted path."""
        return model.get_submodule(path)

    def vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Tower and projector."""
        return [self.module(model, self.tower), self.module(model, self.projector)]

    def lora_targets(self, model: nn.Module, scopes: Sequence[str] = ("language",)) -> list[str]:
        """Exact names of the linear layers of each scope, never a pattern that could hit another part.

        Args:
            model: The unwrapped Hugging Face model.
            scopes: Any of language, projector, vision.
        """
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown:
            raise ValueError(f"unknown LoRA scope {unknown[0]!r}; choose from {', '.join(SCOPES)}")
        names = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and self.scope_of(name) in scopes:
                names.append(name)
        return names

    def scope_of(self, name: str) -> str | None:
        """The scope that a module or parameter name belongs to, or None (the head, for example)."""
        for scope, path in (("projector", self.projector), ("vision", self.tower), ("language", self.language_model)):
            if name == path or name.startswith(f"{path}."):
                return scope
        return None


def inner(model: nn.Module) -> Any:
    """The model without its language head (`model.model`)."""
    return model.base_model
