"""What the rest of the package asks of a model family, answered once for the common case."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from mllm_align.families.grids import Grid, grid
from mllm_align.families.seam import Seam

SCOPES = ("language", "projector", "vision")
# Where `vision.attach` puts a mixer and its encoders into any model.
MIXED = "model.vision_mixer"
# Pixels that a processor makes for its encoders beside those of the tower, one entry for each view of that.
EXTRA_PIXELS = "extra_pixel_values"


@dataclass(frozen=True)
class EncodedImages:
    """What the language model reads of the distinct images of a batch.

    Attributes:
        tokens: Per image (T_i, d), the LLM-ready tokens.
        deepstack: Per image, for each of the decoder's first layers, (T_i, d) that is added there; then, where a mixer
            has layers in the decoder, (T_i, its own width) that these read. Empty where there is neither.
    """

    tokens: tuple[Tensor, ...]
    deepstack: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, in a fixed order."""
        return (*self.tokens, *(layer for image in self.deepstack for layer in image))

    def replaced(self, tensors: Sequence[Tensor]) -> EncodedImages:
        """The same layout with other tensors, in the order of `tensors`."""
        given = iter(tensors)
        tokens = tuple(next(given) for _ in self.tokens)
        return EncodedImages(tokens, tuple(tuple(next(given) for _ in image) for image in self.deepstack))


@dataclass(frozen=True, kw_only=True)
class Family(Seam):
    """One row of the family table: where the parts of a model are, and what its processor produces.

    Paths are dotted and start at the `...ForConditionalGeneration` module.

    Attributes:
        name: Name used in messages and tables.
        model_types: Values of `config.model_type` that belong here.
        vision_type: Value of `config.vision_config.model_type`, where it takes that, too, to tell families apart.
        language_model: The text decoder without its head.
        tower: The vision encoder.
        projector: The module between the two; may lie inside the tower.
        image_keys: Processor outputs that hold pixels or describe images, cut per image.
        token_keys: Processor outputs beside `input_ids` with one entry per prompt token.
        window_ends_blocks: Whether a sliding layer's window holds inside a two-way block, too.
        response_values: What those outputs hold for a response's tokens, where it is not 0.
        packs: Whether several responses may share one prefix under a block mask.
        unpacked_reason: Why not, where `packs` is False.
        image_tokens: What an image becomes, for tables.
        untested: What of the family could not be tested offline, for tables.
    """

    name: str
    model_types: tuple[str, ...]
    vision_type: str | None = None
    language_model: str = "model.language_model"
    tower: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    image_keys: tuple[str, ...] = ("pixel_values",)
    token_keys: tuple[str, ...] = ()
    packs: bool = True
    unpacked_reason: str = ""
    image_tokens: str = ""
    untested: str = ""
    window_ends_blocks: bool = True
    response_values: Mapping[str, int] = field(default_factory=dict)

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
        own = [image[EXTRA_PIXELS] for image in images if EXTRA_PIXELS in image]
        joined = self.join_images([{key: image[key] for key in self.image_keys if key in image} for image in images])
        if own:  # one entry per view that the tower is shown: joined they have no padding
            joined[EXTRA_PIXELS] = torch.cat(own)
        tower: Any = self.module(model, self.tower)
        joined = {key: to_device(value, tower.device) for key, value in joined.items()}
        joined = {
            key: value.to(tower.dtype) if value.is_floating_point() and key != EXTRA_PIXELS else value
            for key, value in joined.items()
        }
        output = inner(model).get_image_features(**joined, return_dict=True)
        layers = [
            self.split_tokens(BaseModelOutputWithPooling(pooler_output=layer), images)
            for layer in getattr(output, "deepstack_features", None) or ()
        ]
        return EncodedImages(tuple(self.split_tokens(output, images)), tuple(zip(*layers, strict=True)))

    def split_tokens(self, output: BaseModelOutputWithPooling, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """`pooler_output` cut per image; a family whose entries are not images overrides it."""
        return list(image_entries(output))

    def mm_outputs(self, encoded: EncodedImages, order: Sequence[int]) -> dict[str, BaseModelOutputWithPooling]:
        """What `forward` and `generate` take as `mm_encoder_outputs`, for placeholders that appear in `order`.

        With deepstack, for each of its layers what belongs to each placeholder.
        """
        tokens: Any = self.joined_tokens([encoded.tokens[index] for index in order])
        if not encoded.deepstack:
            return {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        layers = zip(*(encoded.deepstack[index] for index in order), strict=True)
        deepstack: Any = [self.joined_tokens(layer) for layer in layers]
        return {"image": BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=deepstack)}

    def joined_tokens(self, images: Sequence[Tensor]) -> Any:
        """Tensors (T_i, d) of images as the model's own `pooler_output` holds them: here one entry per image."""
        return list(images)

    def num_deepstack(self, config: Any) -> int:
        """How many of the decoder's layers are given deepstack features by the model itself."""
        return 0

    def token_grids(
        self, image: Mapping[str, Tensor], size: tuple[int, int], image_processor: Any, config: Any
    ) -> tuple[Grid, ...]:
        """Where the tokens of an image lie on it; here one view of the whole image, squashed to its shape.

        Tokens of no grid (newlines, a class token) lie nowhere.

        Args:
            image: The processor's tensors of the image.
            size: Width and height of the upright original.
            image_processor: The one that made them.
            config: The model's.
        """
        return (grid(*self.cells(config, image["pixel_values"])),)

    def cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens of one view (..., height, width): here one per patch of the tower."""
        return self.read_cells(config, pixels)

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

    def two_way_blocks(self, input_ids: Tensor, extras: Mapping[str, Tensor]) -> Tensor | None:
        """(P,) the block of each prefix token: tokens of one block (>= 0) see each other both ways, -1 sees backwards.

        None where attention is causal throughout.
        """
        return None

    def hidden_states(self, model: nn.Module, *, attention_mask: Any, **inputs: Any) -> Tensor:
        """(G, T, d) last hidden states, by the model's own forward without its head.

        Args:
            model: The unwrapped Hugging Face model.
            attention_mask: One for all layers, or one per kind of layer (`config.layer_types`).
            **inputs: `input_ids`, `position_ids`, the family's `token_keys`; `mm_encoder_outputs` if there are images.
        """
        return inner(model)(attention_mask=attention_mask, use_cache=False, **inputs).last_hidden_state

    def decoder_layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """The layers of the text decoder, in order."""
        layers: Any = self.module(model, self.language_model).layers
        return layers

    @contextmanager
    def layer_states(self, model: nn.Module, numbers: Collection[int]) -> Iterator[dict[int, Tensor]]:
        """What goes through the decoder in one forward pass within the context, (G, T, d) by how many layers it has
        gone through: 0 is what the first is given."""
        found: dict[int, Tensor] = {}
        layers = self.decoder_layers(model)
        handles = []
        for number in numbers:
            if number:
                handles.append(layers[number - 1].register_forward_hook(_keep_output(found, number)))
            else:
                handles.append(layers[0].register_forward_pre_hook(_keep_input(found), with_kwargs=True))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """(N, V) logits of hidden states (N, d), as the model's own head computes them."""
        return model.get_output_embeddings()(hidden)  # type: ignore[operator]

    # -- parts -------------------------------------------------------------------------------------------------

    @staticmethod
    def module(model: nn.Module, path: str) -> nn.Module:
        """The submodule at a dotted path."""
        return model.get_submodule(path)

    def projectors(self, model: nn.Module) -> list[str]:
        """Paths of all modules between the vision encoder and the decoder, for PEFT's `modules_to_save`."""
        return [self.projector]

    def towers(self, model: nn.Module) -> list[str]:
        """Paths of modules that hold the vision encoder's parameters and no other's, for PEFT's `modules_to_save`.

        That is the tower itself, unless the projector lies in it: then the parts around the projector.

        Raises:
            ValueError: If a parameter lies in no such module.
        """
        return self._without_projector(model, self.tower)

    def _without_projector(self, model: nn.Module, path: str) -> list[str]:
        module = self.module(model, path)
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        if not names or self.scope_of(path) == "projector":
            return []
        # PEFT copies what is called, and lists of modules are not.
        is_list = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if not is_list and all(self.scope_of(name) == "vision" for name in names):
            return [path]
        for name, _ in module.named_parameters(recurse=False):
            raise ValueError(
                f"train_vision: the parameter {path}.{name} of {self.name} lies beside the projector in no module of "
                "its own, so it cannot be copied: put LoRA on the tower instead (vision in lora_scope)"
            )
        children = [name for name, _ in module.named_children()]
        return [part for name in children for part in self._without_projector(model, f"{path}.{name}")]

    def vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Tower, projector, and a mixer with its encoders where one is attached."""
        mixed = getattr(inner(model), MIXED.rpartition(".")[2], None)
        return [self.module(model, self.tower), self.module(model, self.projector), *([mixed] if mixed else [])]

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
        """The scope that a module or parameter name belongs to: one of `SCOPES`, "mixer" or "encoders" of an attached
        mixer, or None (the head, for example)."""
        places = (
            ("projector", self.projector),
            ("vision", self.tower),
            ("language", self.language_model),
            ("mixer", f"{MIXED}.mixer"),
            ("encoders", f"{MIXED}.encoders"),
        )
        for scope, path in places:
            if name == path or name.startswith(f"{path}."):
                return scope
        return None


def _keep_output(found: dict[int, Tensor], number: int) -> Any:
    def keep(module: nn.Module, given: Any, output: Any) -> None:
        found[number] = output if isinstance(output, Tensor) else output[0]

    return keep


def _keep_input(found: dict[int, Tensor]) -> Any:
    def keep(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        found[0] = given[0] if given else named["hidden_states"]

    return keep


def to_device(tensor: Tensor, device: Any) -> Tensor:
    """A tensor on a device, without waiting for it: out of page-locked memory alone does a copy not wait."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def image_entries(output: BaseModelOutputWithPooling) -> Any:
    """`pooler_output`: for images one tensor or a sequence of them, whatever its annotation says."""
    return output.pooler_output


def inner(model: nn.Module) -> Any:
    """The model without its language head (`model.model`)."""
    return model.base_model
