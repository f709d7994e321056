"""The one loader: model, processor, quantisation and adapters, shared by training and evaluation."""

from mllm_align.models.adapters import attach_lora, load_adapter, lora_config
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.export import merge_and_export
from mllm_align.models.identity import base_probe, check_base, save_base_identity
from mllm_align.models.loading import load_model, load_processor, model_path
from mllm_align.models.mixer_arms import is_mixing, load_arms, mixer_facts, mixing_without, stock_processor
from mllm_align.models.soft_prompts import SoftPrompts, soft_prompts_of
from mllm_align.models.soft_tokens import add_soft_prompts
from mllm_align.models.towers import put_tower

__all__ = [
    "ModelArguments",
    "SoftPrompts",
    "add_soft_prompts",
    "attach_lora",
    "base_probe",
    "check_base",
    "is_mixing",
    "load_adapter",
    "load_arms",
    "load_model",
    "load_processor",
    "lora_config",
    "merge_and_export",
    "mixer_facts",
    "mixing_without",
    "model_path",
    "put_tower",
    "save_base_identity",
    "soft_prompts_of",
    "stock_processor",
]
