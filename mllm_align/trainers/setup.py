"""What a trainer is built from: model and processor, adapters, reference, data sources."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from mllm_align.contract import Needs, Objective, needs_for
from mllm_align.families import check_model, family_of, inner, unwrap
from mllm_align.families.base import MIXED
from mllm_align.models import ModelArguments, load_model, load_processor
from mllm_align.models.adapters import adapter_parameters, is_quantized
from mllm_align.models.mixing import encoder_targets, trained_with_adapter
from mllm_align.models.soft_prompts import soft_prompts_of
from mllm_align.models.soft_tokens import part_from_head, train_soft_prompts
from mllm_align.signals import AdaptersOff, FrozenCopy, NamedAdapter, Reference
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.trainers.config import SHARDED, AlignConfig
from mllm_align.trainers.optimizer import warn_of_idle_rates, warn_of_lost_steps
from mllm_align.trainers.unread import freeze_unread
from mllm_align.vision import RegionWeights
from mllm_align.vision.mixed_vision import ATTRIBUTE, mixed_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NeedsOfSources:
    """What the rows of a source need; a source that no part of the objective takes is refused."""

    objective: Objective

    def __call__(self, source: str) -> Needs:
        """The needs of one source.

        Raises:
            ValueError: If its rows would be used for nothing.
        """
        needs = needs_for(self.objective, source)
        if not (needs.views or needs.optional or needs.features):
            named = ", ".join(map(repr, getattr(self.objective, "sources", ())))
            raise ValueError(
                f"no part of the objective takes rows of source {source!r}; it names {named or 'none'}: rename the "
                "source, or give a part for it"
            )
        return needs


def refuse_sharded(trainer: Any) -> None:
    """Refuses what a launcher may have asked for without the settings' knowing.

    Raises:
        ValueError: For FSDP, and stage 3 of DeepSpeed.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if trainer.is_fsdp_enabled:
        raise ValueError(SHARDED.format("fsdp"))
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(SHARDED.format("stage 3 of deepspeed"))


def check_sources(objective: Objective, sources: Sequence[str], *, complete: bool = True) -> None:
    """Refuses sources without a part, and parts without a source.

    Args:
        objective: Which may name sources.
        sources: Of the data.
        complete: Whether every source that the objective names must be there.

    Raises:
        ValueError: Naming the source.
    """
    ask = NeedsOfSources(objective)
    for source in sources:
        ask(source)
    absent = [source for source in getattr(objective, "sources", ()) if source not in sources]
    if complete and absent:
        raise ValueError(
            f"the objective has a part for source {absent[0]!r}, the data has only {', '.join(map(repr, sources))}: "
            "pass train_dataset as {source: dataset}, or give the rows a 'source' column"
        )


def resolve_model(
    model: str | nn.Module, processing_class: Any, model_init_kwargs: Mapping[str, Any] | None, device: Any
) -> tuple[Any, Any]:
    """The model and its processor, either of which may have been left to be loaded.

    Raises:
        ValueError: If the model cannot read images with the processor, no processor is known, or its attention cannot
            train there.
    """
    if isinstance(model, str):
        arguments = ModelArguments(model_name_or_path=model, **(model_init_kwargs or {}))
        model, processor = load_model(arguments, device=device)
        processing_class = processing_class or processor
    elif model_init_kwargs:
        raise ValueError("model_init_kwargs are for a model given by name; this one is loaded already")
    if processing_class is None:
        name = getattr(unwrap(model), "name_or_path", "")
        if not name:
            raise ValueError("processing_class is missing: pass the model's processor")
        processing_class = load_processor(name)
    check_model(model, processing_class)
    if soft_prompts_of(model) != soft_prompts_of(processing_class):
        raise ValueError(
            "model and processor have other soft prompts: pass as processing_class the one that add_soft_prompts or "
            "load_model gave them to with the model"
        )
    check_attention(model, device)
    return model, processing_class


def use_one_device(args: AlignConfig) -> None:
    """Tells that a process trains on one GPU, and keeps `transformers` from spreading batches over all it sees."""
    if args.n_gpu > 1:
        logger.warning("one process uses one GPU; start with torchrun or accelerate launch to use all of them")
        args._n_gpu = 1


def check_attention(model: Any, device: Any) -> None:
    """Refuses a back end that could score, but not train, where the model will be.

    Raises:
        ValueError: If it is FlexAttention on a CPU, which torch has no backward pass for.
    """
    backend = unwrap(model).config.get_text_config()._attn_implementation
    if backend == "flex_attention" and torch.device(device or "cpu").type == "cpu":
        raise ValueError(
            "flex_attention cannot train on a CPU: torch has no backward pass for it there; load the model with "
            "attn_implementation='sdpa', or train on a GPU"
        )


def region_weights(model: Any, processor: Any, pooling: str) -> RegionWeights:
    """How the collator weighs the objects of a row over image tokens."""
    mixed = mixed_of(inner(unwrap(model)))
    mixer = None if mixed is None else mixed.kind
    copies = 1 if mixer is None else mixer.num_tokens((1, 1)) if mixer.on_grid else None
    return RegionWeights(family_of(model), processor.image_processor, unwrap(model).config, pooling, copies)


def soft_replacements(processor: Any, objective: Objective) -> dict[str, str]:
    """What the collator is to write in the place of prompts in words; one that the objective reads nowhere is told."""
    soft = soft_prompts_of(processor)
    if soft is None:
        return {}
    read = {feature.prompt for feature in objective.needs.features}
    for prompt in soft.replace.keys() - read:
        logger.warning(
            "soft prompt %r is the prompt of no feature of the objective: it trains only where rows have it as a text "
            "of its own; the objective reads %s: give the same words as image_prompt and text_prompt",
            prompt,
            ", ".join(sorted(repr(each) for each in read if each is not None)) or "no prompt",
        )
    return soft.replace


def apply_peft(model: Any, peft_config: PeftConfig | None, processor: Any) -> Any:
    """The model with a new adapter, or as it is; what of its vision side is not read does not train.

    Without target modules the adapter goes on the language model alone. Soft prompts train with it. A mixer that
    trains is trained whole beside it, and short names of target modules do not reach its encoders.

    Raises:
        ValueError: If the model has adapters already, or gets none where it, or an encoder, trains by them alone, or
            nothing reads what of its vision side would train.
    """
    adapted = _with_adapter(model, peft_config)
    freeze_unread(adapted, processor)
    return adapted


def _with_adapter(model: Any, peft_config: PeftConfig | None) -> Any:
    if peft_config is None:
        if is_quantized(model) and not isinstance(model, PeftModel):
            raise ValueError("a quantised model trains through adapters alone: pass peft_config (use_peft)")
        if not isinstance(model, PeftModel) and encoder_targets(model):
            raise ValueError(
                "an encoder of the mixer is to train with LoRA (train: lora), and the model gets no adapter: pass "
                "peft_config (use_peft), or set the encoder's train to full or frozen"
            )
        if isinstance(model, PeftModel):
            part_from_head(model)
            warn_of_frozen_soft_prompts(model)
        return model
    if isinstance(model, PeftModel):
        raise ValueError("the model has adapters already: leave peft_config out, or merge them first")
    config: Any = copy.deepcopy(peft_config)
    if hasattr(config, "target_modules") and config.target_modules is None:
        config.target_modules = family_of(model).lora_targets(model, ["language"]) + encoder_targets(model)
    _add_mixer(model, config)
    train_soft_prompts(model, config)
    # Read here: PEFT shortens the names in the configuration that it is given.
    targets = getattr(config, "target_modules", None)
    wrapped: Any = get_peft_model(model, config)
    part_from_head(wrapped)
    _warn_of_vision(wrapped, targets)
    return wrapped


def warn_of_frozen_soft_prompts(model: PeftModel) -> None:
    """Tells why soft prompts stay as they are under an adapter that was made elsewhere."""
    soft = soft_prompts_of(model)
    if soft is not None and not any(p.requires_grad for p in unwrap(model).get_input_embeddings().parameters()):
        logger.warning(
            "the model's soft prompts do not train: its adapter was made without trainable_token_indices=%s",
            list(soft.ids),
        )


def _add_mixer(model: Any, config: Any) -> None:
    named = getattr(config, "modules_to_save", None) or ()
    whole = [name for name in trained_with_adapter(model) if name not in named]
    if whole:
        config.modules_to_save = [*(config.modules_to_save or ()), *whole]
    if mixed_of(inner(unwrap(model))) is None or getattr(config, "exclude_modules", None):
        return
    targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules
    exact = {DUMMY_TARGET_MODULES, *(name for name, _ in model.named_modules())}  # names that hit nothing else
    if not set(targets) <= exact and not any(ATTRIBUTE in target for target in targets):
        config.exclude_modules = rf".*{re.escape(MIXED)}\..*"


def _warn_of_vision(model: PeftModel, targets: Any) -> None:
    """Short names such as q_proj hit the vision tower too, which few users mean."""
    family = family_of(model)
    full_names = {name for name, _ in model.get_base_model().named_modules()}
    if isinstance(targets, list | set) and set(targets) <= full_names:
        return
    hits = {
        name
        for name in adapter_parameters(model)
        if ".modules_to_save." not in name and family.scope_of(name.removeprefix("base_model.model.")) == "vision"
    }
    if hits:
        logger.warning(
            "target_modules %s also match the vision tower (%d tensors train there); "
            "full module names from Family.lora_targets keep to one part",
            sorted(targets) if isinstance(targets, list | set) else targets,
            len(hits),
        )


def warn_of_settings(model: Any, args: AlignConfig, *, own_optimizer: bool = False) -> None:
    """Tells of settings that will have another effect than is likely meant, or none."""
    warn_of_unshared_prompts(model, args.packing)
    warn_of_idle_rates(model, args)
    warn_of_lost_steps(model, args, own_optimizer=own_optimizer)


def warn_of_unshared_prompts(model: Any, packing: str) -> None:
    """Tells why every view will be a sequence of its own, where the model's attention leaves no choice."""
    shared, reason = can_share_prefixes(family_of(model), unwrap(model))
    if packing == "auto" and not shared:
        logger.warning(
            "prompts are read once per view, not once per image and prompt: %s. Images are still encoded once", reason
        )


def resolve_reference(model: Any, objective: Objective, ref_model: Any, *, once: bool = False) -> Reference | None:
    """The reference that the objective is to be given, or None where it wants none.

    Args:
        model: The policy.
        objective: Its needs decide.
        ref_model: A model, a `Reference`, or None: adapters off where the model has adapters, else a frozen copy.
        once: Whether it is scored once, before training; then it may be the adapter that trains, as it is at first.

    Raises:
        ValueError: If the reference would move with the policy, does not fit it, or is not there.
    """
    if not objective.needs.reference:
        return None
    has_adapters = isinstance(model, PeftModel)
    if ref_model is None and not has_adapters:
        return frozen(copy.deepcopy(model))
    if ref_model is None or isinstance(ref_model, AdaptersOff | NamedAdapter):
        if not has_adapters:
            raise ValueError("this reference needs a model with adapters: pass peft_config, or a model as ref_model")
        _check_fixed(model, ref_model.name if isinstance(ref_model, NamedAdapter) else None, once)
        return ref_model or AdaptersOff()
    other = ref_model.model if isinstance(ref_model, FrozenCopy) else ref_model
    check_same_vocabulary(model, other)
    copied = frozen(other)
    return ref_model if isinstance(ref_model, FrozenCopy) else copied


def _check_fixed(model: Any, adapter: str | None, once: bool) -> None:
    """Refuses a reference on the policy's own base (with another adapter, or None) of which something trains."""
    if adapter is not None and adapter not in model.peft_config:
        raise ValueError(f"no adapter {adapter!r} to use as reference; loaded: {', '.join(model.peft_config)}")
    if adapter in model.active_adapters and not once:
        raise ValueError(
            f"adapter {adapter!r} is the one that trains, so the reference would move with it: set "
            "precompute_ref_log_probs=True, and it is scored as it is at first"
        )
    own = adapter_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (name not in own or (adapter in name.split(".") and not once)):
            raise ValueError(
                f"{name} trains but is part of the reference too, which would move with it: put its module in "
                "modules_to_save, freeze it, or pass another ref_model"
            )


def sees_all_ranks(args: AlignConfig, objective: Objective) -> bool:
    """Whether an objective is shown the rows of all processes: as set, else where it reads features."""
    wanted = bool(objective.needs.features) if args.gather_negatives is None else args.gather_negatives
    if not wanted and args.world_size > 1 and _keeps_memory(objective):
        raise ValueError(
            "gather_negatives=False goes with no memory: each process would keep another one, and a resumed run would "
            "have that of the first alone; leave it on, or set memory to 0"
        )
    return wanted and args.world_size > 1


def check_lone_rows(args: AlignConfig, objective: Objective) -> None:
    """Refuses a contrast of one row, which has a loss of 0.

    Raises:
        ValueError: If a text is compared with nothing: neither other rows, nor negatives of its own, nor a memory.
    """
    rows = args.per_device_train_batch_size * (args.world_size if sees_all_ranks(args, objective) else 1)
    compared = [f for f in objective.needs.features if f.source in ("text", "embedding") and not f.of_phrases]
    listed = any(f.column == "negatives" for f in objective.needs.features)
    alone = rows == 1 and args.max_tokens_per_batch is None
    if compared and alone and not listed and not _keeps_memory(objective):
        raise ValueError(
            "features of one row are compared with nothing: set per_device_train_batch_size above 1 (cache_gradients "
            "makes room); gradient accumulation adds no negatives"
        )


def _keeps_memory(objective: Objective) -> bool:
    """Whether some part of an objective keeps what earlier batches had."""
    return isinstance(objective, nn.Module) and any(getattr(part, "memory_size", 0) for part in objective.modules())


def frozen(model: nn.Module) -> FrozenCopy:
    """A reference that never trains."""
    return FrozenCopy(model.eval().requires_grad_(False))


def check_same_vocabulary(model: Any, other: Any) -> None:
    """Refuses a reference that does not read the same tokens.

    Raises:
        ValueError: If the vocabularies differ in size, or the families do.
    """
    sizes = [unwrap(each).config.get_text_config().vocab_size for each in (model, other)]
    if sizes[0] != sizes[1] or family_of(model).name != family_of(other).name:
        raise ValueError(
            f"ref_model does not fit: it is a {family_of(other).name} with {sizes[1]} tokens, the model a "
            f"{family_of(model).name} with {sizes[0]}"
        )
