"""What a run would do, without doing it: views, trained parameters, tokens per step, memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from mllm_align.contract import needs_for
from mllm_align.families import Family, family_of, unwrap
from mllm_align.signals import FrozenCopy
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.trainers import AlignTrainer
from mllm_align.trainers.window import count_tokens

SAMPLE_ROWS = 64
# Bytes that one token leaves in one decoder layer for the backward pass, per unit of width, in 16 bits and without
# the attention matrix (Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198, section 4.1); with checkpointing,
# the layer's input alone and one layer at work. Vision towers are left out.
ACTIVATION_BYTES = 34
CHECKPOINT_BYTES = 2
# Two moments in the parameter's own precision (Adam); optimisers with "8bit" in their name keep a byte each.
MOMENTS = 2


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        views: Per source, the views that are scored; the optional ones are marked.
        reference: Per source, whether the reference scores them too.
        trainable: Trained parameters by part of the model and kind of layer ("language q_proj").
        parameters: All parameters (a 4-bit weight counts once).
        packing: How prompts are shared, or why not.
        tokens_per_step: Tokens that the policy reads in one optimiser step, estimated from the first rows.
        steps: Optimiser steps; None for a stream without an end.
        memory: Estimated bytes by purpose: weights, gradients and moments are counted, activations and logits a
            rule of thumb at the mean length of a row.
    """

    views: dict[str, list[str]]
    reference: dict[str, bool]
    trainable: dict[str, int]
    parameters: int
    packing: str
    tokens_per_step: int
    steps: int | None
    memory: dict[str, int]

    def __str__(self) -> str:
        """A page for the terminal."""
        lines = ["Views that are scored"]
        for source, views in self.views.items():
            note = ", policy and reference" if self.reference[source] else ", policy"
            lines.append(f"  {source}: {len(views)} ({'; '.join(views)}){note}")
        total = sum(self.trainable.values())
        lines.append(f"Trained parameters: {total:,} of {self.parameters:,} ({100 * total / self.parameters:.2f} %)")
        lines += [f"  {part}: {count:,}" for part, count in self.trainable.items()]
        lines.append(f"Prompts: {self.packing}")
        lines.append(f"Tokens per step: about {self.tokens_per_step:,}")
        lines.append(f"Steps: {self.steps if self.steps is not None else 'until the stream ends'}")
        lines.append(f"Memory per device: about {_gigabytes(sum(self.memory.values()))}")
        lines += [f"  {purpose}: {_gigabytes(size)}" for purpose, size in self.memory.items()]
        lines.append(
            "  (activations and logits by a rule of thumb at the mean length of a row; the vision tower left out)"
        )
        return "\n".join(lines)


def plan_of(trainer: AlignTrainer) -> Plan:
    """The plan of a built trainer."""
    model: Any = trainer.model
    hf = unwrap(model)
    family = family_of(hf)
    needs = {source: needs_for(trainer.objective, source) for source in trainer.source_rows}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_layer: Counter[str] = Counter()
    for name, parameter in trained.items():
        by_layer[_layer(name, family)] += parameter.numel()
    if isinstance(trainer.objective, torch.nn.Module):
        heads = {f"objective.{name}": p for name, p in trainer.objective.named_parameters() if p.requires_grad}
        trained |= heads
        by_layer["objective"] = sum(p.numel() for p in heads.values())
    shared, reason = can_share_prefixes(family, hf)
    if trainer.args.packing == "off":
        shared, reason = False, "packing is off"
    tokens = _tokens_per_micro_batch(trainer)
    window = trainer.args.gradient_accumulation_steps * trainer.args.world_size
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
        memory=_memory(trainer, list(trained.values()), tokens),
    )


def _layer(name: str, family: Family) -> str:
    """Part and kind of the layer that a parameter belongs to, an adapter's or the layer's own: "language q_proj"."""
    path = name.removeprefix("base_model.model.")
    layer = path.split(".lora_")[0].split(".modules_to_save.")[0]
    if layer == path:
        layer = path.rpartition(".")[0]
    return f"{family.scope_of(path) or 'other'} {layer.rpartition('.')[2]}"


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def _tokens_per_micro_batch(trainer: AlignTrainer) -> int:
    """Mean over the first rows of each source, in the shares that sources have."""
    dataset: Any = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    if hasattr(dataset, "__len__"):
        step = max(1, len(dataset) // SAMPLE_ROWS)
        rows = [dataset[index] for index in range(0, len(dataset), step)][:SAMPLE_ROWS]
    else:
        rows = list(islice(iter(dataset), SAMPLE_ROWS))
    batch = trainer.data_collator(rows)["batch"]  # type: ignore[operator]
    return round(count_tokens(batch) / max(len(batch), 1) * size)


def _steps(trainer: AlignTrainer, window: int) -> int | None:
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    if not hasattr(trainer.train_dataset, "__len__"):
        return None
    per_epoch = -(-len(trainer.train_dataset) // (trainer.args.per_device_train_batch_size * window))  # type: ignore[arg-type]
    return round(per_epoch * trainer.args.num_train_epochs)


def _memory(trainer: AlignTrainer, trained: list[torch.nn.Parameter], tokens: int) -> dict[str, int]:
    model: Any = trainer.model
    text = unwrap(model).config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    per_token = (
        (CHECKPOINT_BYTES * layers + ACTIVATION_BYTES)
        if trainer.args.activation_checkpointing
        else (ACTIVATION_BYTES * layers)
    )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moment = 1 if "8bit" in str(getattr(trainer.args.optim, "value", trainer.args.optim)) else None
    found = {
        "weights": weights,
        "reference": weights if isinstance(trainer.reference, FrozenCopy) else 0,
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "optimiser": sum(p.numel() * MOMENTS * (moment or p.element_size()) for p in trained),
        "activations": tokens * width * per_token,
        "logits": 2 * 4 * min(trainer.args.logits_chunk_size, tokens) * text.vocab_size,
    }
    return {purpose: size for purpose, size in found.items() if size}


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GB" if size > 2**27 else f"{size / 2**20:.1f} MB"
