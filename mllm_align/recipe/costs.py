"""What a mixer costs per image: tokens, parameters, and floating-point operations, counted on images of the run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mllm_align.families import Family, family_of, inner, unwrap
from mllm_align.signals import AdaptersOff
from mllm_align.signals.limits import layer_windows
from mllm_align.trainers.activations import linears_of
from mllm_align.vision.mixed_vision import MixedVision, mixed_of
from mllm_align.vision.mixer_files import kind_name

# Images that are encoded for it, with the mixer and without.
IMAGES = 4
# Kernels that no formula knows; in their place the one that one does.
UNCOUNTED = ("flash", "flex")
AT_FIRST = "at first image tokens are those of the base, bit for bit"
EARLIER = "the mixer is as an earlier run left it"
ELSEWHERE = (
    "somewhere else than the base: the language model has not learned to read this; train stage 1 first (mixer "
    "without LoRA, on captions), then name its folder as model.start_from"
)
STAGE_1 = "somewhere else than the base; this run is stage 1: the language model stays, and the mixer learns to fit it"


class PartCost(NamedTuple):
    """`parameters`, all of them, and `flops` per image."""

    parameters: int
    flops: float


@dataclass(frozen=True)
class MixerCost:
    """What mixer and further encoders add to a model, per image; means over some images of the run.

    Operations are those of matrix products, convolutions and attention in a forward pass, a product and a sum being
    two; adapters, as they can be merged, are not counted, nor are the vocabulary head and the text around an image.
    Layers of the mixer in the language model count as the mixer's.

    Attributes:
        kind: Of the mixer.
        images: How many were looked at.
        base_tokens: That the language model reads of an image without the mixer.
        tokens: With it.
        mixer: What the mixer costs.
        encoders: What each further encoder costs, by its settings in words, in order.
        language: FLOPs of the language model that the additional tokens cost; below 0 where there are fewer.
        base_vision: FLOPs of tower and projector.
        base_language: FLOPs of the language model on the tokens without the mixer.
        start: Where training starts, in words.
    """

    kind: str
    images: int
    base_tokens: float
    tokens: float
    mixer: PartCost
    encoders: Sequence[tuple[str, PartCost]]
    language: float
    base_vision: float
    base_language: float
    start: str

    @property
    def added(self) -> float:
        """FLOPs per image that are added in all."""
        return self.mixer.flops + sum(each.flops for _, each in self.encoders) + self.language

    @property
    def share(self) -> float:
        """That, as a part of what the base does per image."""
        return self.added / (self.base_vision + self.base_language)

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        parts = [*self.encoders, (f"{self.kind} mixer", self.mixer)]
        added = [f"  {name}: {each.parameters:,} parameters, {operations(each.flops)}" for name, each in parts]
        total = sum(each.parameters for _, each in parts)
        return [
            f"Mixer: {self.kind}, per image (mean of {self.images})",
            f"  image tokens: {self.base_tokens:,.6g} without it, {self.tokens:,.6g} with it",
            *added,
            f"  language model, for {self.tokens - self.base_tokens:+,.6g} tokens: {operations(self.language)}",
            f"  added: {total:,} parameters; {operations(self.added)}, {100 * self.share:.1f} % of the base's "
            f"{operations(self.base_vision + self.base_language)} (tower and projector "
            f"{operations(self.base_vision)}, language model on its image tokens {operations(self.base_language)})",
            f"  start: {self.start}",
        ]


def mixer_cost(model: Any, images: Sequence[Mapping[str, Tensor]]) -> MixerCost | None:
    """Encodes the first few images with the mixer and without it, and counts.

    Args:
        model: As it will be trained, with adapters or not.
        images: The processor's tensors, of distinct images.

    Returns:
        None where the model has no mixer, or there is no image.
    """
    hf = unwrap(model)
    family, mixed = family_of(hf), mixed_of(inner(hf))
    if mixed is None or not images:
        return None
    looked_at = images[:IMAGES]
    moves = any(p.requires_grad for name, p in hf.named_parameters() if family.scope_of(name) == "language")
    with torch.no_grad(), _as_the_base(model):
        with_it = [_encode(family, hf, mixed, image, enabled=True) for image in looked_at]
        without = [_encode(family, hf, mixed, image, enabled=False) for image in looked_at]
    pairs = list(zip(with_it, without, strict=True))
    base_language = [language_flops(hf, family, len(base.tokens)) for base in without]
    alike = all(torch.equal(one.read, base.tokens) for one, base in pairs)
    encoders = [mean([one.parts[number] for one in with_it]) for number in range(len(mixed.seeing))]
    mixer = mean([one.flops - base.flops - sum(one.parts.values()) for one, base in pairs])
    return MixerCost(
        kind=kind_name(mixed.kind),
        images=len(pairs),
        base_tokens=mean([len(base.tokens) for base in without]),
        tokens=mean([len(one.tokens) for one in with_it]),
        mixer=PartCost(_numbers(mixed.kind), mixer),
        encoders=[
            (f"encoder {each.spec}", PartCost(_numbers(each), flops))
            for each, flops in zip(map(_own, mixed.seeing), encoders, strict=True)
        ],
        language=mean([language_flops(hf, family, len(one.tokens)) for one in with_it]) - mean(base_language),
        base_vision=mean([base.flops for base in without]),
        base_language=mean(base_language),
        start=EARLIER if mixed.loaded else AT_FIRST if alike else ELSEWHERE if moves else STAGE_1,
    )


def language_flops(hf: Any, family: Family, tokens: int) -> int:
    """Operations of the decoder, without its head, on some tokens, each of which sees those before it.

    Two for each weight and token; of experts those that a token is sent to. For each pair of tokens in a layer with
    attention four for each number of a query (scores, and the sum of values).
    """
    text = hf.config.get_text_config()
    decoder = family.module(hf, family.language_model)
    weights = sum(linear.inputs * linear.outputs for linear in linears_of(decoder))
    weights += sum(p.numel() // p.shape[0] * text.num_experts_per_tok for p in decoder.parameters() if p.dim() == 3)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    windows = layer_windows(hf)
    kinds = getattr(text, "layer_types", None) or [next(iter(windows))] * text.num_hidden_layers
    pairs = sum(_pairs(tokens, windows[kind]) for kind in kinds)
    return 2 * weights * tokens + 4 * text.num_attention_heads * head * pairs


def operations(count: float) -> str:
    """FLOPs for reading."""
    unit, size = next((pair for pair in (("T", 1e12), ("G", 1e9)) if abs(count) >= pair[1]), ("M", 1e6))
    return f"{count / size:.2f} {unit}FLOPs"


def mean(values: Sequence[float]) -> float:
    """Of at least one number."""
    return sum(values) / len(values)


def _pairs(tokens: int, window: int | None) -> int:
    seen = tokens if window is None else min(window, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


class _Encoded(NamedTuple):
    """One image: tokens, what layers of the mixer in the language model make of them, operations of all of it, and of
    each further encoder."""

    tokens: Tensor
    read: Tensor
    flops: int
    parts: Counter[int]


def _encode(family: Family, hf: Any, mixed: MixedVision, image: Mapping[str, Tensor], *, enabled: bool) -> _Encoded:
    parts, handles = Counter[int](), list[Any]()
    before, mixed.enabled = mixed.enabled, enabled
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    with counter:
        for number, encoder in enumerate(mixed.seeing):
            handles += _watch(encoder, number, counter, parts)
        try:
            encoded = family.encode_images(hf, [image])
            read = encoded.tokens[0]
            for layer in range(len(mixed.kind.after) if enabled else 0):
                read = mixed.mixer.insert(layer, read, encoded.deepstack[0][-1])
        finally:
            mixed.enabled = before
            for handle in handles:
                handle.remove()
    return _Encoded(encoded.tokens[0], read, counter.get_total_flops(), parts)


class _OneModule:
    """In place of torch's module tracker, which asks for gradients of parameters that are read without."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _watch(encoder: nn.Module, number: int, counter: FlopCounterMode, parts: Counter[int]) -> list[Any]:
    def begins(module: nn.Module, args: Any) -> None:
        parts[number] -= counter.get_total_flops()

    def ends(module: nn.Module, args: Any, output: Any) -> None:
        parts[number] += counter.get_total_flops()

    return [encoder.register_forward_pre_hook(begins), encoder.register_forward_hook(ends)]


def _formulas() -> dict[Any, Any]:
    """For what torch's own counter leaves out: attention on the CPU, products with 4-bit weights."""
    found: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    if "bitsandbytes" in sys.modules:
        quantized = torch.ops.bitsandbytes
        found |= {quantized.gemm_4bit: _four_bit, quantized.gemv_4bit: _four_bit}
    return found


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _four_bit(states: Any, weight: Any, shape: Sequence[int], *rest: Any, out_val: Any = None, **kwargs: Any) -> int:
    return 2 * states.numel() * shape[0]


_four_bit._get_raw = True  # type: ignore[attr-defined]


@contextmanager
def _as_the_base(model: Any) -> Iterator[None]:
    """Inside, no adapters, no dropout, and attention in the tower that can be counted."""
    off = AdaptersOff().on(model) if hasattr(model, "disable_adapter") else nullcontext()
    modes = [(module, module.training) for module in model.modules()]
    vision: Any = unwrap(model).config.vision_config
    backend = getattr(vision, "_attn_implementation", None)
    try:
        model.eval()
        if backend is not None and backend.startswith(UNCOUNTED):
            vision._attn_implementation = "sdpa"
        with off:
            yield
    finally:
        if backend is not None:
            vision._attn_implementation = backend
        for module, mode in modes:
            module.training = mode


def _numbers(module: nn.Module) -> int:
    """Parameters; a packed 4-bit weight counts as many as it stands for, adapters do not count."""
    own = [(name, parameter) for name, parameter in module.named_parameters() if ".lora_" not in name]
    states = [getattr(parameter, "quant_state", None) for _, parameter in own]
    return sum(
        parameter.numel() if state is None else state.shape.numel()
        for (_, parameter), state in zip(own, states, strict=True)
    )


def _own(encoder: Any) -> Any:
    """An encoder, without the copy that PEFT trains."""
    return getattr(encoder, "original_module", encoder)
