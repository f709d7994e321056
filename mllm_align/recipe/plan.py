"""What a run would do, without doing it: views, trained parameters, tokens per step, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch

from mllm_align.contract import Batch, Feature, needs_for
from mllm_align.data.corrupt.dataset import draws_by_source
from mllm_align.data.schema import DEFAULT_SOURCE
from mllm_align.families import Family, family_of, inner, unwrap
from mllm_align.recipe.costs import MixerCost, mixer_cost
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.trainers import AlignTrainer
from mllm_align.trainers.heads import trained_parameters
from mllm_align.trainers.memory import GIB, MemoryEstimate, Switches, run_of
from mllm_align.trainers.planner import Decision, gigabytes
from mllm_align.trainers.shares import SourceShare, source_shares
from mllm_align.trainers.window import count_tokens
from mllm_align.vision.mixed_vision import MixedVision, mixed_of
from mllm_align.vision.mixer_files import part_name


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        views: Per source, the views that are scored; the optional ones are marked.
        reference: Per source, whether the reference scores them too.
        trainable: Trained parameters by part of the model and kind of layer ("language q_proj"); those of a mixer by
            where they are ("mixer sva behind layers 0, 3 of the language model").
        parameters: All parameters (a 4-bit weight counts once).
        packing: How prompts are shared, or why not.
        tokens_per_step: Tokens that the policy reads in one optimiser step, estimated from the first rows.
        steps: Optimiser steps; None for a stream without an end.
        memory: Estimated bytes at the peak of a step, for the longest of the sampled rows.
        decisions: What was changed to fit `memory_budget`.
        budget: Bytes that the run may take, or that the device has; None where neither is known.
        contrast: Per source whose contrast images are made, how.
        shares: What is taken of each named source, where their rows or weights are known.
        mixer: What a mixer and its encoders add; None without one, or without images.
        features: Per source that has any, what else is measured, and behind which instruction.
    """

    views: dict[str, list[str]]
    reference: dict[str, bool]
    trainable: dict[str, int]
    parameters: int
    packing: str
    tokens_per_step: int
    steps: int | None
    memory: MemoryEstimate
    decisions: tuple[Decision, ...] = ()
    budget: int | None = None
    contrast: Mapping[str, str] = field(default_factory=dict)
    shares: Sequence[SourceShare] = ()
    mixer: MixerCost | None = None
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """A page for the terminal."""
        lines = ["Views that are scored"]
        for source, views in self.views.items():
            note = ", policy and reference" if self.reference[source] else ", policy"
            lines.append(f"  {source}: {len(views)} ({'; '.join(views)}){note}")
        if self.features:
            lines.append("Features that are measured beside them")
            lines += [f"  {source}: {'; '.join(features)}" for source, features in self.features.items()]
        if self.shares:
            lines += ["Rows of each source", *(f"  {share}" for share in self.shares)]
        if self.contrast:
            lines.append("Contrast images that are made of the row's own")
            lines += [f"  {source}: {how}" for source, how in self.contrast.items()]
        total = sum(self.trainable.values())
        lines.append(f"Trained parameters: {total:,} of {self.parameters:,} ({100 * total / self.parameters:.2f} %)")
        lines += [f"  {part}: {count:,}" for part, count in self.trainable.items()]
        if self.mixer is not None:
            lines += self.mixer.lines
        lines.append(f"Prompts: {self.packing}")
        lines.append(f"Tokens per step: about {self.tokens_per_step:,}")
        lines.append(f"Steps: {self.steps if self.steps is not None else 'until the stream ends'}")
        of = f" of {gigabytes(self.budget)}" if self.budget is not None else ""
        lines.append(f"Memory per device: about {gigabytes(self.memory.total)}{of}")
        lines += [f"  {purpose}: {gigabytes(size)}" for purpose, size in self.memory.parts.items()]
        if self.budget is not None and self.memory.total > self.budget:
            lines.append(
                "  that is more than there is: set memory_budget, and switches that save memory are turned on"
            )
        if self.decisions:
            lines.append("Changed to fit memory_budget")
            lines += [f"  {decision}" for decision in self.decisions]
        return "\n".join(lines)


def plan_of(trainer: AlignTrainer) -> Plan:
    """The plan of a built trainer."""
    args, model = trainer.args, trainer.model
    hf = unwrap(model)
    family = family_of(hf)
    needs = {source: needs_for(trainer.objective, source) for source in trainer.source_rows}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_layer: Counter[str] = Counter()
    for name, parameter in trained.items():
        by_layer[_layer(name, family, mixed_of(inner(hf)))] += parameter.numel()
    by_layer["objective"] = sum(p.numel() for p in trained_parameters(trainer.objective))
    shared, reason = can_share_prefixes(family, hf)
    if args.packing == "off":
        shared, reason = False, "packing is off"
    made = draws_by_source(trainer.train_dataset)
    run = run_of(args, model, trainer.objective, trainer.reference, trainer.data_collator, trainer.train_dataset)
    tokens = _tokens_per_micro_batch(trainer, run.work.batch)
    window = args.gradient_accumulation_steps * args.world_size
    return Plan(
        views={
            source: [*map(str, n.views), *(f"{view} where there" for view in n.optional)]
            for source, n in needs.items()
        },
        reference={source: n.reference for source, n in needs.items()},
        trainable={layer: by_layer[layer] for layer in sorted(by_layer) if by_layer[layer]},
        parameters=sum(_size(p) for p in model.parameters()),
        packing="shared by the responses to them" if shared else f"one sequence per view ({reason})",
        tokens_per_step=tokens * window,
        steps=_steps(trainer, window),
        memory=run.estimate(Switches.of(args)),
        decisions=trainer.decisions,
        budget=_device_memory(trainer) if args.memory_budget is None else int(args.memory_budget * GIB),
        contrast={source or DEFAULT_SOURCE: str(draws) for source, draws in made.items()},
        shares=source_shares(trainer.train_dataset),
        mixer=mixer_cost(model, run.work.batch.images),
        features={source: [_told(each) for each in n.features] for source, n in needs.items() if n.features},
    )


def _told(feature: Feature) -> str:
    """A feature in a few words."""
    behind = "" if feature.prompt is None else f" behind {feature.prompt!r}"
    return f"{feature.source} of {feature.column}, {feature.pooling}{behind}"


def _layer(name: str, family: Family, mixed: MixedVision | None) -> str:
    """Part and kind of the layer that a parameter belongs to, an adapter's or the layer's own: "language q_proj"."""
    path = name.removeprefix("base_model.model.")
    layer, _, adapter = path.partition(".lora_")
    leaf = layer.rpartition(".")[2]
    scope = family.scope_of(path)
    if mixed is not None and scope in ("mixer", "encoders"):
        return part_name(mixed, path) + (f" {leaf}" if adapter else "")
    if ".token_adapter." in path:
        leaf = "vectors of soft prompts"
    elif not adapter:
        layer = path.split(".modules_to_save.")[0]
        leaf = (path.rpartition(".")[0] if layer == path else layer).rpartition(".")[2]
    return f"{scope or 'other'} {leaf}"


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def _tokens_per_micro_batch(trainer: AlignTrainer, batch: Batch) -> int:
    """Mean over the sampled rows."""
    rows = count_tokens(batch) / max(len(batch), 1) * trainer.args.per_device_train_batch_size
    return trainer.args.max_tokens_per_batch or round(rows)


def _steps(trainer: AlignTrainer, window: int) -> int | None:
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    if not isinstance(trainer.train_dataset, Sized):
        return None
    if trainer.args.max_tokens_per_batch is not None:
        per_epoch = -(-len(trainer.get_train_dataloader()) // trainer.args.gradient_accumulation_steps)
    else:
        rows = sum(share.drawn for share in source_shares(trainer.train_dataset)) or len(trainer.train_dataset)
        per_epoch = -(-rows // (trainer.args.per_device_train_batch_size * window))
    return round(per_epoch * trainer.args.num_train_epochs)


def _device_memory(trainer: AlignTrainer) -> int | None:
    """Bytes of the device that this process has or could have; None where it is not a CUDA device."""
    device = torch.device(trainer.args.device)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)
