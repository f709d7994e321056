"""What a user can say about the model: the flag names of TRL's `ModelConfig`, and some of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mllm_align.models.soft_prompts import check_prompts
from mllm_align.vision.attach import mixer_from

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANT_TYPES = ("nf4", "fp4")


@dataclass
class ModelArguments:
    """Which model to load, how to quantise it, and which parts of it to adapt.

    Args:
        model_name_or_path: Hub id or folder of a vision-language model.
        model_revision: Branch, tag or commit on the Hub.
        dtype: "auto", "bfloat16", "float16" or "float32". "auto" is bfloat16 on a GPU that has it, float16 on one
            that has not, and float32 on CPU.
        attn_implementation: Attention back end; None leaves the choice to transformers. Prefixes are shared under
            sdpa, eager and flex_attention.
        trust_remote_code: Whether code from the model's repository may run.
        load_in_4bit: Load the language model in 4 bits (QLoRA). Tower, projector and head stay in `dtype`.
        bnb_4bit_quant_type: "nf4" or "fp4".
        use_bnb_nested_quant: Quantise the quantisation constants too.
        use_peft: Train a LoRA adapter; otherwise all parameters train.
        lora_r: Rank.
        lora_alpha: Scale; the update is multiplied by `lora_alpha / lora_r`.
        lora_dropout: Dropout on the adapter's input.
        lora_scope: Parts that get LoRA layers: any of language, projector, vision.
        train_projector: Train a full copy of the projector beside the LoRA layers and save it with them.
        train_vision: The same of the vision tower, without the projector.
        soft_prompts: Prompts in words in whose place vectors are learned (`models.soft_prompts`), wherever one is a
            whole text of a row or an objective's `image_prompt` or `text_prompt`.
        mixer: Further vision encoders and how they are mixed in: `kind` (additive, interleave, concat, gated, window,
            sva, x_former), `encoders` (names, or mappings of `vision.encoder_spec.Encoder`), the kind's options,
            `train` (true), and `weights`, a folder with a trained one to begin with.
        start_from: Folder of an earlier run without LoRA (stage 1: mixer, projector) whose weights this one begins
            with.
    """

    model_name_or_path: str | None = None
    model_revision: str = "main"
    dtype: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = True
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_scope: list[str] = field(default_factory=lambda: ["language"])
    train_projector: bool = False
    train_vision: bool = False
    soft_prompts: list[str] = field(default_factory=list)
    mixer: dict[str, Any] | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        """Refuses values that nothing later could make sense of."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.bnb_4bit_quant_type not in QUANT_TYPES:
            raise ValueError(f"bnb_4bit_quant_type {self.bnb_4bit_quant_type!r} is none of {', '.join(QUANT_TYPES)}")
        if self.mixer is not None:
            mixer_from(self.mixer)
        if self.soft_prompts:
            check_prompts(self.soft_prompts)
        if self.train_projector and "projector" in self.lora_scope:
            raise ValueError(
                "train_projector trains a full copy of the projector; take 'projector' out of lora_scope, or "
                "train_projector off"
            )
        if self.train_vision and "vision" in self.lora_scope:
            raise ValueError(
                "train_vision trains a full copy of the vision tower; take 'vision' out of lora_scope, or "
                "train_vision off"
            )

    def torch_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype that `dtype` means on `device`."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    def loading_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that every `from_pretrained` call shares."""
        return {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}
