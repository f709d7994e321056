"""Further vision encoders: loaded, checked, and told apart from others when a model is loaded again."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig

from mllm_align.contract import Teacher
from mllm_align.vision.encoder_gradients import keep_read_parameters
from mllm_align.vision.encoder_spec import Encoder, encoder_from
from mllm_align.vision.four_bit import settle_4bit_on_cpu
from mllm_align.vision.mixed_vision import Statistics
from mllm_align.vision.teacher_parts import Pixels, first_line, quiet
from mllm_align.vision.vision_encoder import VisionEncoder

__all__ = ["Encoder", "VisionEncoder", "check_encoder", "encoder_facts", "encoder_from", "load_encoder"]

# How far the features of one drawn image may be from those known, relative to the largest: another precision of the
# same weights stays below, other weights do not.
TOLERANCE, TOLERANCE_4BIT = 5e-2, 0.4
# Heads that pool, whose attention reads its weights past the layer that holds them: never in 4 bits.
NOT_QUANTIZED = ["lm_head", "head", "pooler", "vision_model.head"]


def load_encoder(
    spec: Encoder, device: Any = None, dtype: torch.dtype = torch.float32, base: Statistics | None = None
) -> VisionEncoder:
    """Loads an encoder.

    Args:
        spec: Which one.
        device: Where it runs; the CPU by default.
        dtype: Of its weights; of what 4-bit ones are computed in.
        base: How the base model's pixels are normalised, for one with `normalise` "base".

    Returns:
        In evaluation mode; only a "full" one has parameters that train, and of those the ones that what is read
        depends on.

    Raises:
        ValueError: If there is no such model, it sees no images, lacks weights or an image processor, has no such
            layer, or cannot see images of this size; or its 4-bit weights cannot be used.
    """
    where, place = f"encoder {str(spec)!r}", torch.device(device or "cpu")
    try:
        config: Any = AutoConfig.from_pretrained(spec.model, revision=spec.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where} is neither a model's folder nor a model on the Hub in reach: {first_line(error)}"
        ) from None
    if spec.normalise == "base" and base is None:
        raise ValueError(f"{where} reads pixels as a base normalises them, and there is no base: leave normalise out")
    pixels = Pixels.of(Teacher(spec.model, size=_square(spec, config), revision=spec.revision), config, where)
    body = _body(spec, where, place, dtype)
    if spec.train != "full":
        body.requires_grad_(False)
    mean, std = base if base is not None and spec.normalise == "base" else (pixels.mean, pixels.std)
    try:
        made = VisionEncoder(spec, body, mean, std, pixels.size)
    except (LookupError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{where} cannot be used: {first_line(error)}") from error
    if spec.train == "full":
        keep_read_parameters(made)
    return made.eval()


def encoder_facts(encoder: VisionEncoder) -> dict[str, Any]:
    """What tells an encoder from others when it is loaded again, and what decides its numbers; plain data.

    The probe (some features of one drawn image) is that of the weights it was loaded with, not of trained ones.
    """
    return {
        "encoder": encoder.spec._asdict(),
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "side": encoder.side,
        "follows": encoder.follows,
        "width": encoder.width,
        "probe": list(encoder.probe),
    }


def check_encoder(encoder: VisionEncoder, facts: Mapping[str, Any], where: str) -> None:
    """Whether an encoder that was loaded now is the one that `encoder_facts` tell of.

    Args:
        encoder: As it was loaded, before trained weights are put in.
        facts: Of the one that is meant.
        where: What needs it, for errors.

    Raises:
        ValueError: If it is another.
    """
    now = encoder_facts(encoder)
    normalise = encoder_from(facts["encoder"], where).normalise
    if encoder.spec.normalise != normalise:
        raise ValueError(
            f"{where}: encoder {encoder.spec.model!r} has normalise {encoder.spec.normalise} now, it had {normalise} "
            f"when it was attached: set normalise to {normalise}"
        )
    for name in ("mean", "std", "side", "follows", "width"):
        if now[name] != facts[name]:
            of_base = normalise == "base" and name in ("mean", "std")
            mend = "load it into the base model of then" if of_base else "load that version of it (`revision`)"
            raise ValueError(
                f"{where}: encoder {encoder.spec.model!r} has {name} {now[name]} now, it had {facts[name]} when it "
                f"was attached: {mend}"
            )
    known, seen = torch.tensor(facts["probe"]), torch.tensor(encoder.probe)
    tolerance = TOLERANCE_4BIT if encoder.spec.load_in_4bit != facts["encoder"]["load_in_4bit"] else TOLERANCE
    if (known - seen).abs().max() > tolerance * known.abs().max().clamp(min=1e-6):
        raise ValueError(
            f"{where}: the weights of encoder {encoder.spec.model!r} are not those that it had when it was attached: "
            "one and the same image has other features; load that version of it (`revision`)"
        )


def _square(spec: Encoder, config: Any) -> int | None:
    """Side of the square that is meant, where neither processor nor configuration say one (SigLIP 2 of any shape)."""
    own: Any = getattr(config, "vision_config", config)
    patches = getattr(own, "num_patches", None)
    if spec.size is not None or not isinstance(patches, int) or getattr(own, "image_size", None):
        return spec.size
    return round(patches**0.5) * own.patch_size


def _body(spec: Encoder, where: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The module that sees, on its device."""
    options: dict[str, Any] = {"dtype": dtype}
    if spec.load_in_4bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"{where}: load_in_4bit needs bitsandbytes: pip install bitsandbytes, or set it off")
        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else dtype,
            llm_int8_skip_modules=NOT_QUANTIZED,
        )
    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                spec.model, revision=spec.revision, output_loading_info=True, **options
            )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{where} cannot be loaded: {first_line(error)}") from None
    body: Any = getattr(model, "vision_model", model)
    takes = inspect.signature(body.forward).parameters
    if "pixel_values" not in takes:
        raise ValueError(f"{where} is a {type(model).__name__}, which sees no images")
    if "input_ids" in takes:
        raise ValueError(
            f"{where} is a {type(model).__name__}, which reads text together with images: name a vision model"
        )
    prefix = "vision_model." if body is not model else ""
    own = {prefix + name for name in body.state_dict()}
    missing = [name for name in report["missing_keys"] if name in own and "pooler" not in name]
    if missing:
        raise ValueError(f"{where}: its checkpoint lacks weights such as {missing[0]}")
    if spec.load_in_4bit and device.type == "cpu":
        settle_4bit_on_cpu(body)
    return body if spec.load_in_4bit else body.to(device)
