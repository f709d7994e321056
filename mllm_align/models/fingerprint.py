"""A key of a model's weights and settings: equal keys, equal numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from mllm_align.families import family_of, inner, unwrap
from mllm_align.models.adapters import adapter_parameters
from mllm_align.signals import AdaptersOff, FrozenCopy, NamedAdapter, Reference
from mllm_align.vision.mixed_vision import mixed_of

SAMPLES = 64
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Say nothing of what the model computes: where it came from, what generation would do. Quantisation is told apart.
NEUTRAL = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "use_cache",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Fingerprint:
    """What a model is.

    Attributes:
        facts: Everything that decides its numbers.
        name: Where it was loaded from, for people; it does not count.
    """

    facts: dict[str, Any]
    name: str

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        return _digest_of(self.facts)


def base_fingerprint(model: nn.Module, precision: str, *, vision_only: bool = False) -> Fingerprint:
    """Of the model below its adapters, whether it has any or not.

    Attention back ends give the same numbers up to rounding and do not count.

    Args:
        model: The model, wrapped in adapters or not.
        precision: The autocast in which it is run: "no", "bf16" or "fp16".
        vision_only: Leave the language model out, for what depends on the vision side alone.

    Raises:
        ValueError: If weights are not in this process (sharded, or offloaded to nowhere).
    """
    hf = unwrap(model)
    family = family_of(hf)
    own = {name.removeprefix("base_model.model.") for name in adapter_parameters(model)}
    weights = {
        name.replace(".base_layer", "").replace(".original_module", "").replace(".token_adapter", ""): parameter
        for name, parameter in hf.named_parameters()
        if name not in own
    }
    if vision_only:
        weights = {name: value for name, value in weights.items() if family.scope_of(name) != "language"}
    weights |= {f"{name}.{part}": scale for name, value in weights.items() for part, scale in _scales(value)}
    facts: dict[str, Any] = {"part": "vision" if vision_only else "all"}
    mixed = mixed_of(inner(hf))
    if mixed is not None:
        facts["mixer"] = mixed.settings
    return _fingerprint(hf, weights.items(), precision, facts)


def reference_fingerprint(reference: Reference, policy: nn.Module, precision: str) -> Fingerprint:
    """Of a reference, by the weights that it is made of.

    Args:
        reference: Adapters off, a named adapter, or a frozen copy.
        policy: The model that trains.
        precision: The autocast in which it is run.

    Raises:
        ValueError: If the reference is of another kind, or weights are not in this process.
    """
    if isinstance(reference, AdaptersOff):
        return base_fingerprint(policy, precision)
    if isinstance(reference, NamedAdapter):
        base = base_fingerprint(policy, precision)
        return Fingerprint(base.facts | {"adapter": _adapter_facts(policy, reference.name)}, base.name)
    if isinstance(reference, FrozenCopy):
        base = base_fingerprint(reference.model, precision)
        adapters = list(getattr(reference.model, "active_adapters", ())) if adapter_parameters(reference.model) else []
        facts = {"adapter": [_adapter_facts(reference.model, name) for name in adapters]} if adapters else {}
        return Fingerprint(base.facts | facts, base.name)
    raise ValueError(
        f"precompute_ref_log_probs cannot tell what a {type(reference).__name__} is: use AdaptersOff, NamedAdapter or "
        "FrozenCopy as reference, or set precompute_ref_log_probs=False"
    )


def _fingerprint(hf: Any, weights: Iterable[tuple[str, Tensor]], precision: str, facts: dict[str, Any]) -> Fingerprint:
    config = hf.config.to_dict()
    quantization: Any = getattr(hf.config, "quantization_config", None)
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    facts = facts | {
        "class": type(hf).__name__,
        "weights": weights_digest(weights),
        "dtype": str(hf.dtype),
        "config": _digest_of(_settings(config)),
        "quantization": quantization,
        "precision": precision,
        "transformers": version("transformers"),
    }
    revision = getattr(hf.config, "_commit_hash", None)
    name = getattr(hf, "name_or_path", "") or "a model in memory"
    return Fingerprint(facts, f"{name}@{revision}" if revision else name)


def _adapter_facts(model: Any, adapter: str) -> dict[str, str]:
    """Settings and weights of one adapter; what it is called does not count."""
    weights = [
        (".".join("*" if part == adapter else part for part in name.split(".")), parameter)
        for name, parameter in model.named_parameters()
        if adapter in name.split(".")
    ]
    config = model.peft_config[adapter].to_dict()
    left_out = ("inference_mode", "base_model_name_or_path", "revision", "init_lora_weights")
    settings = {key: value for key, value in config.items() if key not in left_out}
    return {"weights": weights_digest(weights), "settings": _digest_of(settings)}


def _scales(weight: Any) -> Iterator[tuple[str, Tensor]]:
    """What a 4-bit weight is multiplied with: its packed bits are the same for all multiples of it."""
    state = getattr(weight, "quant_state", None)
    for part in ("absmax", "offset", "code"):
        for level, scales in (("", state), ("nested_", getattr(state, "state2", None))):
            found = getattr(scales, part, None)
            if isinstance(found, Tensor):
                yield f"{level}{part}", found


def weights_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of named tensors: shapes, types, the exact sum of all bits as integers, and some values in order.

    The sums see any change anywhere in one pass at the speed of memory, are exact, and are the same on every device.

    Raises:
        ValueError: If a tensor has no values in this process.
    """
    entries, numbers = [], []
    for name, tensor in sorted(weights, key=lambda entry: entry[0]):
        if tensor.is_meta or tensor.numel() == 0:
            raise ValueError(f"{name} has no values in this process (sharded or offloaded), so no cache can be keyed")
        bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
        index = torch.linspace(0, bits.numel() - 1, SAMPLES, dtype=torch.float64).long().to(bits.device)
        numbers.append(torch.cat([bits.sum(dtype=torch.int64)[None], bits[index].long()]))
        entries.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
    state = hashlib.blake2b("\n".join(entries).encode(), digest_size=16)
    for group in _fetched(numbers):
        state.update(group.numpy().tobytes())
    return state.hexdigest()


def _fetched(numbers: list[Tensor]) -> Iterable[Tensor]:
    """To the host, in one copy where all are on one device."""
    if len({tensor.device for tensor in numbers}) == 1:
        return [torch.stack(numbers).cpu()]
    return [tensor.cpu() for tensor in numbers]


def _settings(value: Any) -> Any:
    """A configuration without what does not decide numbers, at every level."""
    if isinstance(value, Mapping):
        kept = {key: _settings(part) for key, part in value.items() if str(key) not in NEUTRAL}
        return {key: part for key, part in kept.items() if "attn_implementation" not in str(key)}
    return value


def _digest_of(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Text for JSON that is the same in every process: a set's own order is not."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
