"""Loading a vision-language model and its processor from the Hub or a folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from mllm_align.families import check_model, family_of
from mllm_align.families.image_only import load_processor as family_processor
from mllm_align.models.adapters import attach_lora, load_adapter
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.mixing import attach_mixer
from mllm_align.models.soft_prompts import read_soft_prompts, tell_processor
from mllm_align.models.soft_tokens import add_soft_prompts, put_soft_prompts
from mllm_align.vision.four_bit import settle_4bit_on_cpu
from mllm_align.vision.mixer_files import check_fingerprint

DEMO_BASE = "demo-base"


def load_model(
    model: str | os.PathLike[str] | ModelArguments,
    adapter: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    trainable: bool = False,
    encoders: Sequence[str] | None = None,
    **overrides: Any,
) -> tuple[Any, Any]:
    """A model and its processor, ready to train or to generate.

    Args:
        model: Hub id, folder, "demo-base", or `ModelArguments`.
        adapter: Folder or Hub id of a PEFT adapter to put on top.
        device: Where to; the first GPU (of this process) where there is one, else the CPU.
        trainable: Whether the adapter's parameters train. With `use_peft` and no `adapter`, a new one is attached.
        encoders: Where the further vision encoders of a mixer are now, if they were moved.
        **overrides: Fields of `ModelArguments`, for example `load_in_4bit=True`.

    Returns:
        `(model, processor)`, the model in evaluation mode. A PEFT model where an adapter was loaded or attached. A
        mixer that lies beside the adapter (or the model) is attached, and the outputs are checked against those saved;
        soft prompts that lie there are put in.

    Raises:
        ValueError: If there is no such model, its type is not a known vision-language family, it has no processor or
            no image tokens, bitsandbytes is missing or unusable for it, the adapter belongs to another base, or a
            mixer or soft prompts do not fit.
    """
    arguments = model if isinstance(model, ModelArguments) else ModelArguments(model_name_or_path=os.fspath(model))
    arguments = replace(arguments, **overrides)
    name = model_path(arguments.model_name_or_path)
    target = _device(device)
    config = _config(name, arguments)
    family_of(config)
    processor = load_processor(name, arguments)
    base = _base_model(name, config, arguments, target)
    check_model(base, processor)
    base.eval()
    attached = attach_mixer(base, processor, arguments, adapter, encoders, name)
    _soften(base, processor, arguments, adapter, name)
    if adapter is not None:
        loaded = load_adapter(base, adapter, trainable=trainable)
        if attached is not None:
            check_fingerprint(loaded, processor, attached)
        return loaded, processor
    if attached is not None:
        check_fingerprint(base, processor, attached)
    if arguments.use_peft:
        return attach_lora(base, arguments), processor
    return base, processor


def model_path(name: str | os.PathLike[str] | None) -> str:
    """The folder of the small model that comes with the package for "demo-base"; any other name as it is.

    Raises:
        ValueError: If no model is named, or a folder that is not there.
    """
    if not name:
        raise ValueError("model_name_or_path is missing: name a Hub id or a folder")
    if name != DEMO_BASE:
        # What no Hub id looks like is not asked for there, which without a network takes half a minute.
        if _only_a_path(os.fspath(name)) and not Path(name).exists():
            raise ValueError(f"there is no folder {os.fspath(name)!r}: name one, or a Hub id (owner/name)")
        return os.fspath(name)
    return str(Path(str(resources.files("mllm_align"))) / "demo" / "base")


def nowhere(name: str) -> str:
    """What to add to "no such model on the Hub": that there is no folder of that name either, or nothing."""
    return "" if Path(name).exists() else f" (nor is there a folder {name!r} here)"


def _only_a_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or Path(name).is_absolute() or len(Path(name).parts) > 2


def load_processor(model: str | os.PathLike[str], arguments: ModelArguments | None = None) -> Any:
    """The processor of a model, set up for generation: padding on the left, a pad token always there.

    Raises:
        ValueError: If the checkpoint has no processor that reads images.
    """
    name = model_path(model)
    kwargs = (arguments or ModelArguments()).loading_kwargs()
    try:
        processor: Any = family_processor(name, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"no processor could be loaded from {name!r}: {_first_line(error)}") from error
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"{name!r} has no image processor, only a {type(processor).__name__}: "
            "it is a text model, or its preprocessor_config.json is missing"
        )
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    soft = read_soft_prompts(name)
    if soft is not None:
        tell_processor(processor, soft)
    return processor


def _soften(
    base: Any, processor: Any, arguments: ModelArguments, adapter: str | os.PathLike[str] | None, name: str
) -> None:
    """Puts the soft prompts of base, adapter and arguments into a model just loaded."""
    for folder in filter(None, (name, adapter)):
        soft = read_soft_prompts(folder)
        if soft is not None:
            put_soft_prompts(base, processor, soft)
    if arguments.soft_prompts and adapter is not None:
        raise ValueError(
            f"the adapter in {os.fspath(adapter)!r} brings the soft prompts that it was trained with: leave "
            "soft_prompts out"
        )
    if arguments.soft_prompts:
        add_soft_prompts(base, processor, arguments.soft_prompts)


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _config(name: str, arguments: ModelArguments) -> Any:
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        adapter = (Path(name) / "adapter_config.json").exists()
        mend = "it is an adapter: pass it as `adapter` and its base as the model" if adapter else "wrong folder?"
        raise ValueError(f"no config.json in {name!r}; {mend}")
    try:
        return AutoConfig.from_pretrained(name, **arguments.loading_kwargs())
    except (OSError, ValueError) as error:
        raise ValueError(f"no model could be loaded from {name!r}{nowhere(name)}: {_first_line(error)}") from error


def _base_model(name: str, config: Any, arguments: ModelArguments, device: torch.device) -> Any:
    dtype = arguments.torch_dtype(device)
    kwargs = arguments.loading_kwargs() | {"dtype": dtype}
    if arguments.attn_implementation is not None:
        kwargs["attn_implementation"] = arguments.attn_implementation
    if not arguments.load_in_4bit:
        model: Any = AutoModelForImageTextToText.from_pretrained(name, config=config, **kwargs)
        return model.to(device)
    kwargs["quantization_config"] = _quantization(config, arguments, device)
    kwargs["device_map"] = {"": device}
    model = AutoModelForImageTextToText.from_pretrained(name, config=config, **kwargs)
    if device.type == "cpu":
        settle_4bit_on_cpu(model)
    return model


def _quantization(config: Any, arguments: ModelArguments, device: torch.device) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_in_4bit needs bitsandbytes: pip install bitsandbytes, or set load_in_4bit off")
    family = family_of(config)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=arguments.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else arguments.torch_dtype(device),
        # A list given here replaces the default one, so the head has to be named too.
        llm_int8_skip_modules=["lm_head", family.projector, family.tower],
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
