"""The towers of several stages as one: their features beside each other, as MCL integrates them.

After "Learning the Unlearned: Mitigating Feature Suppression in Contrastive Learning" (ECCV 2024),
https://arxiv.org/abs/2402.11816: what the representation has in the end is the features of all stages, concatenated.
Importing this module lets `AutoModel` load both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class StagedVisionConfig(PreTrainedConfig):
    """Of towers with one configuration.

    Args:
        vision_config: Of each tower, with its `model_type`.
        num_stages: How many.
    """

    model_type = "staged_vision_model"

    def __init__(self, vision_config: Mapping[str, Any] | None = None, num_stages: int = 1, **others: Any) -> None:
        self.vision_config, self.num_stages = dict(vision_config or {}), num_stages
        # What who reads a vision model's configuration asks for.
        for name in ("image_size", "patch_size", "num_channels", "num_hidden_layers", "num_attention_heads"):
            if name in self.vision_config:
                setattr(self, name, self.vision_config[name])
        self.hidden_size = num_stages * self.vision_config.get("hidden_size", 0)
        super().__init__(**others)


class StagedVisionModel(PreTrainedModel):
    """A vision model whose every state is that of all stages, concatenated along the channels.

    Shapes:
        With S towers of width d: `last_hidden_state` (B, T, S d), each of `hidden_states` likewise, and
        `pooler_output` (B, S d) where the towers have one. What a tower gives is not scaled.

    Example:
        >>> tiny = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> config = {"model_type": "clip_vision_model", "image_size": 4, "patch_size": 2, **tiny}
        >>> model = StagedVisionModel(StagedVisionConfig(config, num_stages=3))
        >>> tuple(model(torch.zeros(1, 3, 4, 4)).last_hidden_state.shape)
        (1, 5, 24)
    """

    config_class = StagedVisionConfig
    config: StagedVisionConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: StagedVisionConfig) -> None:
        super().__init__(config)
        one = config_of(config.vision_config)
        self.stages = nn.ModuleList([AutoModel.from_config(one) for _ in range(config.num_stages)])
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool = False,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """What all towers make of the same pixels; further inputs are handed to each."""
        if interpolate_pos_encoding:
            others["interpolate_pos_encoding"] = True
        found = [
            stage(pixel_values=pixel_values, output_hidden_states=output_hidden_states, **others)
            for stage in self.stages
        ]
        layers = [each.hidden_states for each in found] if output_hidden_states else []
        pooled = [each.get("pooler_output") for each in found]
        output = BaseModelOutputWithPooling(
            last_hidden_state=torch.cat([each.last_hidden_state for each in found], dim=-1),  # type: ignore[arg-type]
            pooler_output=None if pooled[0] is None else torch.cat(pooled, dim=-1),  # type: ignore[arg-type]
            hidden_states=tuple(torch.cat(layer, dim=-1) for layer in zip(*layers, strict=True)) or None,
        )
        return output if return_dict else output.to_tuple()


class StagedConfig(PreTrainedConfig):
    """Of dual encoders with one configuration and one text tower.

    Args:
        base_config: Of the dual encoder, with its `model_type`.
        num_stages: How many image towers.
    """

    model_type = "staged_dual_encoder"

    def __init__(self, base_config: Mapping[str, Any] | None = None, num_stages: int = 1, **others: Any) -> None:
        self.base_config, self.num_stages = dict(base_config or {}), num_stages
        super().__init__(**others)

    @property
    def text_config(self) -> Any:
        """Of the text tower."""
        return getattr(config_of(self.base_config), "text_config", None)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Its own: what generation would ask of a text model has no meaning here."""
        return self


class StagedDualEncoder(PreTrainedModel):
    """One text tower and the image towers of all stages, in one space.

    An image's vector is the unit vectors of all stages, concatenated; a text's is its unit vector, repeated as often.
    So the cosine of the two is the mean over stages of their cosines.

    Shapes:
        With S stages and vectors of length d: `pooler_output` (B, S d) of `get_image_features` and
        `get_text_features`, both of length 1.
    """

    config_class = StagedConfig
    config: StagedConfig
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: StagedConfig) -> None:
        super().__init__(config)
        one = config_of(config.base_config)
        self.stages = nn.ModuleList([AutoModel.from_config(one) for _ in range(config.num_stages)])
        for stage in list(self.stages)[1:]:
            _drop_texts(stage)
        self.post_init()

    @classmethod
    def from_stages(cls, folders: Sequence[str | os.PathLike[str]]) -> StagedDualEncoder:
        """The dual encoders of some folders, whose text towers are the same.

        Raises:
            ValueError: If there is none, or they differ in more than the weights of their image towers.
        """
        if not folders:
            raise ValueError("there are no stages to integrate")
        stages = [AutoModel.from_pretrained(folder, dtype="auto") for folder in folders]
        first: Any = stages[0]
        for folder, stage in zip(folders, stages, strict=True):
            if _settings(stage.config) != _settings(first.config):
                raise ValueError(f"{os.fspath(folder)} has another configuration than {os.fspath(folders[0])}")
            for name, value in first.text_model.state_dict().items():
                if not torch.equal(value, stage.text_model.state_dict()[name]):
                    raise ValueError(f"{os.fspath(folder)} has another text tower than {os.fspath(folders[0])}")
        config = StagedConfig(first.config.to_dict(), len(stages), dtype=first.dtype)
        with torch.device("meta"):  # its own weights would only be thrown away
            made = cls(config)
        for stage in stages[1:]:
            _drop_texts(stage)
        made.stages = nn.ModuleList(stages)
        return made.eval()

    @property
    def vision_model(self) -> StagedVisionModel:
        """The image towers as one vision model, which shares their weights."""
        first: Any = self.stages[0]
        config = StagedVisionConfig(
            first.vision_model.config.to_dict() | {"model_type": first.vision_model.config.model_type},
            len(self.stages),
            dtype=self.dtype,
        )
        with torch.device("meta"):
            made = StagedVisionModel(config)
        made.stages = nn.ModuleList([stage.vision_model for stage in self.stages])  # type: ignore[misc]
        return made.train(self.training)

    def get_image_features(self, pixel_values: Tensor, **others: Tensor) -> BaseModelOutputWithPooling:
        """(B, S d) unit vectors of images; the states are those of the towers, concatenated."""
        found = [stage.get_image_features(pixel_values=pixel_values, **others) for stage in self.stages]  # type: ignore[operator]
        return _beside(found)

    def get_text_features(self, input_ids: Tensor, **others: Tensor) -> BaseModelOutputWithPooling:
        """(B, S d) unit vectors of texts."""
        first: Any = self.stages[0]
        return _beside([first.get_text_features(input_ids=input_ids, **others)] * len(self.stages))

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(images, texts) cosines."""
        told = {} if attention_mask is None else {"attention_mask": attention_mask}
        images = self.get_image_features(pixel_values).pooler_output
        texts = self.get_text_features(input_ids, **told).pooler_output
        return images @ texts.T  # type: ignore[operator, union-attr]


def _beside(outputs: Sequence[Any]) -> BaseModelOutputWithPooling:
    vectors = [functional.normalize(each.pooler_output, dim=-1) / sqrt(len(outputs)) for each in outputs]
    states: Any = torch.cat([each.last_hidden_state for each in outputs], dim=-1)
    pooled: Any = torch.cat(vectors, dim=-1)
    return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


def _drop_texts(stage: Any) -> None:
    for part in ("text_model", "text_projection"):
        if hasattr(stage, part):
            setattr(stage, part, None)


def config_of(values: Mapping[str, Any]) -> Any:
    """The configuration that plain data with its `model_type` says."""
    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


for _config, _model in ((StagedVisionConfig, StagedVisionModel), (StagedConfig, StagedDualEncoder)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
