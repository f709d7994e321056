"""How much device memory a run takes, by purpose, from shapes alone: nothing is run on the device for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from mllm_align.contract import Objective
from mllm_align.families import Family, family_of, unwrap
from mllm_align.signals import AdaptersOff, CachedReference, EngineOptions, FrozenCopy, NamedAdapter
from mllm_align.signals.attention import SHARED_PREFIX
from mllm_align.signals.limits import layer_windows
from mllm_align.trainers.activations import FLOAT, PLAIN, Precision, Stack, linears_of, stack_of
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.heads import trained_parameters
from mllm_align.trainers.master_weights import stepped
from mllm_align.trainers.mixer_memory import MixedBytes, mixed_bytes
from mllm_align.trainers.window import term_counts
from mllm_align.trainers.workload import GroupShape, ImageShape, Workload, sample_workload

GIB = 2**30
# Of a chunk of logits, float32 and alive together: the log-softmax, its gradient, and the gradient of the logits.
LOGIT_BYTES = 12
# 8-bit optimisers keep the moments of small tensors in float32 (bitsandbytes' min_8bit_size).
SMALLEST_8BIT = 4096
MOMENTS = {"sgd": 0, "adafactor": 0, "lomo": 0, "adalomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
# Rules of thumb, for CUDA alone: what the driver takes, and what the allocator cannot hand out in pieces that fit.
CUDA_CONTEXT, FRAGMENTATION = GIB // 2, 0.1


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of device memory at the peak of a step.

    Attributes:
        lasting: By purpose, alive together when the backward pass begins.
        passing: By purpose, alive one after another; only the largest counts.
    """

    lasting: dict[str, int]
    passing: dict[str, int]

    @property
    def parts(self) -> dict[str, int]:
        """What the total is the sum of, by purpose, without zeros."""
        largest = max(self.passing, key=self.passing.__getitem__, default="")
        found = self.lasting | {largest: self.passing.get(largest, 0)}
        return {purpose: size for purpose, size in found.items() if size}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The purpose that takes most."""
        return max(self.parts, key=self.parts.__getitem__, default="nothing")


@dataclass(frozen=True)
class Switches:
    """The settings of `AlignConfig` that decide how much memory a given model, data and objective take."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    logits_chunk_size: int
    activation_checkpointing: bool
    recompute_without_image: bool
    precompute_ref_log_probs: bool
    cache_gradients: bool
    max_tokens_per_forward: int | None
    max_tokens_per_batch: int | None

    @classmethod
    def of(cls, args: AlignConfig) -> Switches:
        """As they are set."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def apply_to(self, args: AlignConfig) -> None:
        """Sets them."""
        for field in fields(self):
            setattr(args, field.name, getattr(self, field.name))


@dataclass(frozen=True)
class Run:
    """What of a run does not hang on the switches: sizes of the model's parts, and sampled rows.

    Attributes:
        weights: Bytes of the model.
        reference: Bytes of a frozen copy.
        reference_stays: Whether the copy stays even if the reference is computed before training.
        gradients: Bytes of gradients, and of the buckets in which ranks exchange them.
        single: Bytes of the gradients of each single term, where their norms are logged.
        masters: Bytes of float32 masters of what trains in bfloat16.
        moments: Bytes of the optimiser's state.
        language: The decoder's layers.
        tower: The vision encoder's layers.
        mixed: Of a mixer and its encoders.
        projector: Bytes that a projector with a gradient keeps per image token.
        vocabulary: Numbers per token that the head gives out.
        embeddings_copy: Bytes of the embedding matrix where PEFT trains rows of it: every pass writes them into a copy
            of the whole, and the backward pass makes a gradient as large.
        cos_and_sin: Bytes of the position rotation per token.
        windows: Of each kind of layer, how many tokens back one sees; None for all.
        backend: Of the decoder's attention.
        precision: Of the language model.
        on_cuda: Whether it runs on a CUDA device.
        work: Sampled rows.
    """

    weights: int
    reference: int
    reference_stays: bool
    gradients: int
    single: tuple[int, ...]
    masters: int
    moments: int
    language: Stack
    tower: Stack
    mixed: MixedBytes
    projector: float
    vocabulary: int
    embeddings_copy: int
    cos_and_sin: int
    windows: tuple[int | None, ...]
    backend: str
    precision: Precision
    on_cuda: bool
    work: Workload

    def estimate(self, switches: Switches) -> MemoryEstimate:
        """The bytes of the micro-batch that the longest sampled rows make.

        All groups of a micro-batch are alive until its backward pass, and its images with them; with `cache_gradients`
        one group is at a time, and then some images. Gradients count in full beside them: those of earlier
        micro-batches of a step are there.
        """
        groups = self.groups(switches)
        images = self.work.images_of(self._rows(switches))
        kept = [self.activations(group, switches.activation_checkpointing) for group in groups]
        # Their turn comes one by one in the backward pass.
        again_whole = [size for size, group in zip(kept, groups, strict=True) if self._is_let_go(group, switches)]
        activations, seen = sum(kept) - sum(again_whole), images
        # A group is read when nothing of it is kept yet, and its embeddings are the last of it to have a gradient.
        reading = 0 if again_whole else min(kept, default=0)
        if switches.cache_gradients:
            activations = reading = max(kept, default=0)
            seen = sorted(images, key=lambda image: -image.tower)[: EngineOptions().max_images_per_forward]
        vision = self._vision(seen, switches.activation_checkpointing)
        if switches.cache_gradients:
            # The images' turn comes when the last group is done.
            vision = max(0, vision - activations)
        read = self.work.image_tokens_of(self._rows(switches))
        if switches.cache_gradients:
            read = min(read, max((group.tokens for group in groups), default=0))
        activations += read * self.mixed.inserted
        per_token = self.language.width * self.precision.stream + self.mixed.along
        copies = self.reference_stays or not switches.precompute_ref_log_probs
        lasting = {
            "weights": self.weights,
            "reference": self.reference if copies else 0,
            "gradients": self.gradients,
            # Term after term; those of earlier micro-batches are there.
            "gradients of single terms": sum(self.single if switches.gradient_accumulation_steps > 1 else ())
            + max(self.single, default=0),
            "master weights": self.masters,
            "optimiser": self.moments,
            "activations": activations,
            "attention masks": sum(self._mask(group) for group in groups),
            "images": sum(image.pixels + image.llm * per_token for image in images),
            "vision activations": vision,
            "signals": sum(g.scored + g.pooled for g in groups) * self.language.width * self.precision.compute,
        }
        largest = max(groups, key=lambda group: group.tokens, default=GroupShape(0, 0, 0, 0))
        kept_now = activations + vision
        again = self.language.largest_layer(largest.tokens, largest.length, largest.attention)
        chunk = max((min(switches.logits_chunk_size, group.scored) for group in groups), default=0)
        passing = {
            "vocabulary head": chunk * self.vocabulary * LOGIT_BYTES,
            "sequences without an image again": 0 if switches.cache_gradients else max(again_whole, default=0),
            "a copy of the embeddings": max(0, self.embeddings_copy - reading),
            "a layer in the backward pass": self.language.backward_work(largest.tokens)
            + (again if switches.activation_checkpointing and self.language.trains else 0),
            # These come before anything is kept.
            "a layer without a graph": max(0, self.language.forward_work(largest.tokens) - kept_now),
            "the vision tower at work": max(0, self.tower.forward_work(_tower_tokens(seen)) - kept_now),
            "further encoders at work": max(0, self.mixed.at_work(_tower_tokens(seen)) - kept_now),
            # This comes when nothing is kept any more, and is as large as the masters.
            "gradients of master weights": max(0, self.masters - kept_now),
        }
        if self.on_cuda:
            moving = kept_now + max(passing.values())
            lasting["driver and allocator"] = CUDA_CONTEXT + int(FRAGMENTATION * moving)
        return MemoryEstimate(lasting, passing)

    @staticmethod
    def _is_let_go(group: GroupShape, switches: Switches) -> bool:
        return switches.recompute_without_image and not group.reads_images

    def groups(self, switches: Switches) -> list[GroupShape]:
        """The forward passes of that micro-batch."""
        return self.work.groups(self._rows(switches), switches.max_tokens_per_forward)

    def _rows(self, switches: Switches) -> Any:
        return self.work.longest(switches.per_device_train_batch_size, switches.max_tokens_per_batch)

    def activations(self, group: GroupShape, checkpointing: bool) -> int:
        """Bytes that autograd keeps of the decoder for one forward pass, head and masks left out."""
        if not self.language.trains:
            return 0
        around = group.tokens * (FLOAT * self.language.width + self.cos_and_sin)
        if checkpointing:
            # The embeddings too, before images are put in: transformers has them ask for a gradient.
            embeddings = group.tokens * self.language.width * self.precision.stream
            return around + embeddings + self.language.entries(group.tokens)
        return around + self.language.kept(group.tokens, group.length, group.attention)

    def _mask(self, group: GroupShape) -> int:
        """One mask per kind of layer: for the responses alone where the kernel and the window allow it."""
        if self.backend == "flex_attention":
            return 0
        entries = 0
        for window in self.windows:
            short = self.backend in ("sdpa", SHARED_PREFIX) and (window is None or group.plain <= window)
            entries += group.length * (group.length - group.plain if short else group.length)
        return group.packs * entries * self.precision.compute

    def _vision(self, images: Sequence[ImageShape], checkpointing: bool) -> int:
        tokens, keys = _tower_tokens(images), max((image.tower for image in images), default=0)
        kept = round(sum(image.llm for image in images) * self.projector)
        kept += self.mixed.activations(tokens, checkpointing)
        if not self.tower.trains:
            return kept
        if checkpointing:
            return kept + self.tower.entries(tokens) + self.tower.largest_layer(tokens, keys, PLAIN)
        return kept + self.tower.kept(tokens, keys, PLAIN)


def _tower_tokens(images: Sequence[ImageShape]) -> int:
    return sum(image.tower for image in images)


def run_of(
    args: AlignConfig,
    model: Any,
    objective: Objective,
    reference: AdaptersOff | NamedAdapter | FrozenCopy | CachedReference | Any | None,
    collator: Any,
    dataset: Any,
) -> Run:
    """Reads the sizes off a model and the first rows off its data; nothing is computed on the device.

    Args:
        args: Settings of the run.
        model: The policy as it will be trained.
        objective: Its own parameters count too.
        reference: Of the run, or None.
        collator: Of the run.
        dataset: Training data.
    """
    hf = unwrap(model)
    family = family_of(hf)
    autocast = 2 if args.bf16 or args.fp16 else None
    text, vision = hf.config.get_text_config(), hf.config.vision_config
    precision = Precision(_float_bytes(hf, hf.get_input_embeddings()), autocast)
    trained = [p for p in model.parameters() if p.requires_grad] + trained_parameters(objective)
    tower_trains, projector_trains = _trains(family, hf, family.tower), _trains(family, hf, family.projector)
    vision_trains = tower_trains or projector_trains
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    mixed = mixed_bytes(hf, half, tower_trains=tower_trains, projector_trains=projector_trains)
    embeddings_train = any(p.requires_grad for p in hf.get_input_embeddings().parameters())
    options = EngineOptions(packing=args.packing)
    frozen = reference.model if isinstance(reference, FrozenCopy) else None
    gradients = sum(p.numel() * p.element_size() for p in trained)
    work = sample_workload(model, copy.copy(collator), dataset, options, reference=reference is not None)
    terms = term_counts(objective, work.batch, text.hidden_size) if args.log_term_gradients_every else ()
    optimised, masters = stepped(trained, args)
    backend = text._attn_implementation or "sdpa"
    tower_backend = getattr(vision, "_attn_implementation", None) or "sdpa"
    return Run(
        weights=weight_bytes(model),
        reference=weight_bytes(frozen) if frozen is not None else 0,
        reference_stays=bool(getattr(frozen, "is_quantized", False)),
        gradients=gradients * (2 if args.world_size > 1 else 1),
        single=(gradients,) * len(terms),
        masters=masters,
        moments=moment_bytes(optimised, str(getattr(args.optim, "value", args.optim))),
        language=stack_of(
            family.module(hf, family.language_model),
            precision,
            heads=text.num_attention_heads,
            attention=backend,
            input_trains=vision_trains or mixed.trains or embeddings_train,
        ),
        tower=stack_of(
            _running(family.module(hf, family.tower)),
            Precision(_float_bytes(hf, family.module(hf, family.tower)), autocast),
            heads=getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", 1),
            attention=tower_backend,
            input_trains=False,
        ),
        mixed=mixed,
        projector=_projector_bytes(family, hf, precision, vision_trains, mixed),
        vocabulary=text.vocab_size,
        embeddings_copy=_embeddings_copy(hf),
        cos_and_sin=2 * precision.stream * _head_size(text),
        windows=tuple(layer_windows(hf).values()),
        backend=backend,
        precision=precision,
        on_cuda=torch.device(args.device).type == "cuda",
        work=work,
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters as they lie in memory: 4-bit weights packed, with their scales."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for scales in (state, getattr(state, "state2", None)):
            absmax = getattr(scales, "absmax", None)
            total += 0 if absmax is None else absmax.numel() * absmax.element_size()
    return total


def moment_bytes(trained: Sequence[Tensor], optimiser: str) -> int:
    """Bytes of the optimiser's state; 0 for paged ones, which move to the host, and for factored ones."""
    if optimiser.startswith("paged"):
        return 0
    count = next((count for name, count in MOMENTS.items() if optimiser.startswith(name)), 2)
    lean = "8bit" in optimiser or optimiser == "rmsprop_bnb"

    def size(parameter: Tensor) -> int:
        return (1 if parameter.numel() >= SMALLEST_8BIT else 4) if lean else parameter.element_size()

    return sum(count * p.numel() * size(p) for p in trained)


def _float_bytes(hf: Any, module: nn.Module) -> int:
    """Bytes per number of a module's floating-point weights; packed weights do not tell."""
    found = next((p for p in module.parameters() if p.is_floating_point()), None)
    return (found if found is not None else torch.empty(0, dtype=hf.dtype)).element_size()


def _embeddings_copy(hf: Any) -> int:
    embeddings = hf.get_input_embeddings()
    if not isinstance(embeddings, TrainableTokensWrapper) or not embeddings.active_adapters:
        return 0
    return weight_bytes(embeddings.original_module)


def _running(module: nn.Module) -> nn.Module:
    """The module with PEFT's trained copies in the places of what they were copied from, which is not run."""
    if isinstance(module, ModulesToSaveWrapper):
        active = module.active_adapters
        module = module.modules_to_save[active[0]] if active else module.original_module
    found = copy.copy(module)
    found._modules = {name: part and _running(part) for name, part in module._modules.items()}
    return found


def _trains(family: Family, hf: Any, path: str) -> bool:
    return any(p.requires_grad for p in family.module(hf, path).parameters())


def _projector_bytes(family: Family, hf: Any, precision: Precision, vision_trains: bool, mixed: MixedBytes) -> float:
    """A projector's linear layers keep what they read, its activation what enters it.

    Where a gradient only passes through on its way to a mixer, that is the activation alone.
    """
    if not vision_trains and not mixed.before_projector:
        return 0
    inputs = [linear.inputs for linear in linears_of(_running(family.module(hf, family.projector)))]
    kept = 2 * sum(inputs) if vision_trains else sum(inputs[1:])
    # Its rows are tokens without those that a mixer adds.
    return kept * precision.compute / mixed.more_tokens


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
