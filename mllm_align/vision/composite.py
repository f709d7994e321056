"""A model's own vision tower and further encoders as one tower, which `transformers` builds from a configuration.

Where a model's `vision_config` is resolved by `AutoConfig`, such a model is loaded by `AutoModelForImageTextToText`
like any other once this module has been imported; without it `transformers` says that it does not know the tower's
`model_type`. `models.composite` makes one of a model with a mixer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_align.families.grids import pair
from mllm_align.vision.encoder_spec import encoder_from
from mllm_align.vision.mixed_vision import MixedVision, Statistics
from mllm_align.vision.mixers import MIXERS, Map, Mixer, Sight, Widths, make_mixer
from mllm_align.vision.mixers.concat import ChannelConcat
from mllm_align.vision.staged import config_of
from mllm_align.vision.vision_encoder import Measured, VisionEncoder

# Those whose work is done on what the tower gives; a concatenation's columns become the projector's.
COMPOSITE_KINDS = ("additive", "concat")


class CompositeVisionConfig(PreTrainedConfig):
    """Of a tower with further encoders in it.

    Args:
        base_config: Of the model's own tower, with its `model_type`. What that says is said here, too, for who reads a
            tower's configuration (`image_size`, `patch_size`, `layer_norm_eps`, ...); `hidden_size` is that of what
            the projector reads.
        kind: Of the mixer, one of `COMPOSITE_KINDS`.
        options: Of that.
        widths: Of the mixer, by name.
        encoders: Of each further one `spec`, `config` (with its `model_type`), `mean`, `std` and `measured`.
        statistics: `mean` and `std` of the pixels that the tower is given.
    """

    model_type = "composite_vision_model"

    def __init__(
        self,
        base_config: Mapping[str, Any] | None = None,
        kind: str = "additive",
        options: Mapping[str, Any] | None = None,
        widths: Mapping[str, Any] | None = None,
        encoders: Sequence[Mapping[str, Any]] = (),
        statistics: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.base_config, self.kind, self.options = dict(base_config or {}), kind, dict(options or {})
        self.widths, self.encoders = dict(widths or {}), [dict(each) for each in encoders]
        self.statistics = dict(statistics or {})
        usual = PreTrainedConfig().to_dict()
        for name, value in self.base_config.items():
            if name not in usual and name not in others:
                setattr(self, name, value)
        if self.widths:
            self.hidden_size = self.widths["base"] + (sum(self.widths["extra"]) if kind == "concat" else 0)
        super().__init__(**{name: value for name, value in others.items() if name != "hidden_size"})

    @classmethod
    def of(cls, tower: Any, mixed: MixedVision) -> CompositeVisionConfig:
        """Of a tower with what is attached beside it.

        Args:
            tower: A vision model of `transformers`.
            mixed: With a mixer of `COMPOSITE_KINDS` and encoders that read the tower's pixels.
        """
        mixer = mixed.kind
        encoders = [
            {
                # As a part of the tower it trains with it, or does not.
                "spec": each.spec._replace(train="full")._asdict(),
                "config": _plain(each.model.config),
                "mean": list(each.mean),
                "std": list(each.std),
                "measured": each.measured._asdict(),
            }
            for each in mixed.seeing
        ]
        kind = next(name for name, kind in MIXERS.items() if type(mixer) is kind)
        widths, statistics = mixer.widths._asdict(), mixed.statistics._asdict()
        return cls(_plain(tower.config), kind, mixer.options, widths, encoders, statistics, dtype=tower.dtype)


class CompositeVisionModel(PreTrainedModel):
    """A vision tower whose patches have what further encoders see of them in their channels, or added to them.

    Class tokens come first and stay as they are, with zeros for the channels of further encoders.

    Shapes:
        `last_hidden_state` and each of `hidden_states` (B, T, `hidden_size`); `pooler_output` is the tower's own.
    """

    config_class = CompositeVisionConfig
    config: CompositeVisionConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: CompositeVisionConfig) -> None:
        super().__init__(config)
        self.base = AutoModel.from_config(config_of(config.base_config))
        encoders = [_encoder_of(each) for each in config.encoders]
        widths = Widths(**{**config.widths, "extra": tuple(config.widths["extra"])})
        mixer = _without_columns(make_mixer(config.kind, widths, config.options))
        statistics = Statistics(tuple(config.statistics["mean"]), tuple(config.statistics["std"]))
        self.mixed = MixedVision(mixer, encoders, statistics)
        self.post_init()

    @classmethod
    def of(cls, tower: Any, mixed: MixedVision) -> CompositeVisionModel:
        """Of a tower and what was attached beside it, whose modules it takes; columns of a concatenation stay out."""
        with torch.device("meta"):  # its own weights would only be thrown away
            made = cls(CompositeVisionConfig.of(tower, mixed))
        made.base = tower
        for each in mixed.seeing:
            each.spec = each.spec._replace(train="full")
        made.mixed = MixedVision(_without_columns(mixed.kind), mixed.seeing, mixed.statistics)
        return made.eval()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """What the tower and the further encoders make of the same pixels; other inputs are the tower's own."""
        found = self.base(pixel_values=pixel_values, output_hidden_states=output_hidden_states, **others)
        height, width = pair(self.config.patch_size)
        cells = pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        extra = self.mixed.sees(pixel_values, None, cells)
        layers = tuple(self._joined(each, cells, extra) for each in found.get("hidden_states") or ())
        output = BaseModelOutputWithPooling(
            last_hidden_state=self._joined(found.last_hidden_state, cells, extra),
            pooler_output=found.get("pooler_output"),
            hidden_states=layers or None,
        )
        return output if return_dict else output.to_tuple()

    def _joined(self, states: Tensor | None, cells: tuple[int, int], extra: tuple[Map | None, ...]) -> Any:
        if states is None:  # of a layer that nobody asked for
            return None
        classes = states.shape[1] - cells[0] * cells[1]
        first, patches = states[:, :classes], states[:, classes:]
        mixer = self.mixed.kind
        sight = Sight(cells, Map(patches, cells), extra)
        joined = mixer.joined(patches, sight) if isinstance(mixer, ChannelConcat) else mixer(patches, sight)
        return torch.cat([functional.pad(first, (0, joined.shape[-1] - first.shape[-1])), joined], dim=1)


def _without_columns(mixer: Mixer) -> Mixer:
    """A mixer without what the projector has in its place."""
    if isinstance(mixer, ChannelConcat):
        mixer.columns = nn.ModuleList()
    return mixer


def _encoder_of(given: Mapping[str, Any]) -> VisionEncoder:
    model: Any = AutoModel.from_config(config_of(given["config"]))
    spec = encoder_from(given["spec"], "a composite tower")
    measured = Measured.of(given["measured"])
    return VisionEncoder(spec, getattr(model, "vision_model", model), given["mean"], given["std"], 0, measured)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as data, with its `model_type`; the precision is that of the whole."""
    kept = {name: value for name, value in config.to_dict().items() if name not in ("dtype", "_name_or_path")}
    return {**kept, "model_type": config.model_type}


AutoConfig.register(CompositeVisionConfig.model_type, CompositeVisionConfig, exist_ok=True)
AutoModel.register(CompositeVisionConfig, CompositeVisionModel, exist_ok=True)
