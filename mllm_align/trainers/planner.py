"""From a memory budget to settings: the switches that save memory, cheapest first, until the estimate fits.

None of them changes what is optimised: they trade time or disk for memory. What is on stays on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mllm_align.contract import Objective
from mllm_align.data.corrupt.dataset import CorruptedDataset
from mllm_align.families import unwrap
from mllm_align.models.adapters import is_quantized
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.memory import GIB, MemoryEstimate, Run, Switches, run_of

logger = logging.getLogger(__name__)

SMALLEST_CHUNK = 64


@dataclass(frozen=True)
class Decision:
    """One setting that was changed to save memory.

    Attributes:
        switch: Name of the setting.
        before: Its value.
        after: Its new value.
        bytes_before: Estimate of the whole run without it, the earlier decisions taken.
        bytes_after: Estimate with it.
        reason: What it saves.
        cost: What it costs.
    """

    switch: str
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    reason: str
    cost: str

    def __str__(self) -> str:
        """One sentence."""
        sizes = f"{gigabytes(self.bytes_before)} -> {gigabytes(self.bytes_after)}"
        return f"{self.switch} {self.before} -> {self.after} ({sizes}): {self.reason}; costs {self.cost}"


@dataclass(frozen=True)
class Allowed:
    """Which switches may be used in a run.

    Attributes:
        smaller_batches: Whether a micro-batch may be split up into several that are accumulated.
        checkpointing: Whether the model can recompute activations.
        precompute: Whether the reference can be computed before training.
        quantize: Whether the weights are not in few bits yet, which is advised where nothing else helps.
        caching: Whether gradients may go back group by group.
    """

    smaller_batches: bool = True
    checkpointing: bool = True
    precompute: bool = True
    quantize: bool = True
    caching: bool = True


@dataclass(frozen=True)
class _Step:
    """One rung of the ladder: the settings that it changes, and values to try, from the least saving to the most."""

    settings: tuple[str, ...]
    options: Callable[[Run, Switches, Allowed], Iterator[Switches]]
    reason: str
    cost: str


def plan_switches(run: Run, switches: Switches, budget: int, allowed: Allowed) -> tuple[list[Decision], Switches]:
    """Turns on switches, cheapest first, until the estimate fits.

    A cheap switch that turns out not to be needed beside a dearer one, which is needed anyway, is undone.

    Args:
        run: Sizes of model and data.
        switches: As the user set them.
        budget: Bytes.
        allowed: Which switches may be used.

    Returns:
        What was changed and why, and the switches to use.

    Raises:
        ValueError: If even all of them are not enough.
    """

    def total(candidate: Switches) -> int:
        return run.estimate(candidate).total

    chosen, used = switches, []
    for step in LADDER:
        if total(chosen) <= budget:
            break
        options = list(step.options(run, chosen, allowed))
        best = next((o for o in options if total(o) <= budget), min(options, key=total, default=chosen))
        if total(best) < total(chosen):
            chosen = best
            used.append(step)
    if total(chosen) > budget:
        raise ValueError(_too_small(run.estimate(chosen), budget, switches, chosen, allowed))
    for step in reversed(used[:-1]):
        for option in (switches, *step.options(run, switches, allowed)):
            gentler = replace(chosen, **{name: getattr(option, name) for name in step.settings})
            if total(gentler) <= budget:
                chosen = gentler
                break
    return _decisions(run, switches, chosen), chosen


def plan_memory(
    args: AlignConfig, model: Any, objective: Objective, reference: Any, collator: Any, dataset: Any
) -> tuple[Decision, ...]:
    """Fits a run into `args.memory_budget`: changes `args`, says what and why, the same on every rank.

    Args:
        args: Settings of the run, changed in place; nothing is done where there is no budget.
        model: The policy as it will be trained.
        objective: Of the run.
        reference: Of the run, or None.
        collator: Of the run.
        dataset: Training data.

    Raises:
        ValueError: If the run cannot fit, or its model is spread over devices.
    """
    if args.memory_budget is None:
        return ()
    if dataset is None:
        logger.warning("memory_budget has no effect: there is no training data to plan for")
        return ()
    if args.deepspeed:
        raise ValueError(
            "memory_budget counts on a whole model per device, which deepspeed may do away with: leave it out "
            "and set activation_checkpointing, cache_gradients and the batch size yourself"
        )
    found: Any = None
    if PartialState().is_main_process:
        try:
            run = run_of(args, model, objective, reference, collator, dataset)
            allowed = allowed_for(model, objective, dataset)
            allowed = replace(allowed, caching=args.log_term_gradients_every is None)
            found = plan_switches(run, Switches.of(args), int(args.memory_budget * GIB), allowed)
        except ValueError as error:
            found = str(error)
    found = broadcast_object_list([found])[0]
    if isinstance(found, str):
        raise ValueError(found)
    decisions, switches = found
    for decision in decisions:
        logger.warning("memory_budget=%g: %s", args.memory_budget, decision)
    switches.apply_to(args)
    return tuple(decisions)


def allowed_for(model: Any, objective: Objective, dataset: Any) -> Allowed:
    """Which switches change nothing but memory and time in a run.

    Features of one micro-batch are compared with each other, so such a batch is never split up. What is computed once
    must not change from epoch to epoch: streams, and rows that are made when they are asked for, are left alone.
    """
    return Allowed(
        smaller_batches=not objective.needs.features,
        checkpointing=bool(getattr(unwrap(model), "supports_gradient_checkpointing", False)),
        precompute=all(map(_is_fixed, getattr(dataset, "parts", {"": dataset}).values())),
        quantize=not is_quantized(model),
    )


def _is_fixed(dataset: Any) -> bool:
    if isinstance(dataset, CorruptedDataset):
        return not dataset.by_epoch and _is_fixed(dataset.rows)
    if isinstance(dataset, datasets.Dataset):
        return dataset.format["type"] != "custom"
    return isinstance(dataset, list | tuple)


def _smaller_chunks(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    size = switches.logits_chunk_size
    while size > SMALLEST_CHUNK:
        size = max(SMALLEST_CHUNK, size // 2)
        yield replace(switches, logits_chunk_size=size)


def _reference_first(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    if allowed.precompute and run.reference and not switches.precompute_ref_log_probs:
        yield replace(switches, precompute_ref_log_probs=True)


def _without_image(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    if not switches.recompute_without_image and any(not group.reads_images for group in run.groups(switches)):
        yield replace(switches, recompute_without_image=True)


def _smaller_batches(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    size = switches.per_device_train_batch_size
    if not allowed.smaller_batches or switches.max_tokens_per_batch is not None:
        return
    for rows in range(size - 1, 0, -1):
        if size % rows == 0:
            steps = switches.gradient_accumulation_steps * (size // rows)
            yield replace(switches, per_device_train_batch_size=rows, gradient_accumulation_steps=steps)


def _checkpointing(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    if allowed.checkpointing and not switches.activation_checkpointing:
        yield replace(switches, activation_checkpointing=True)


def _group_by_group(run: Run, switches: Switches, allowed: Allowed) -> Iterator[Switches]:
    if not allowed.caching:
        return
    cached = replace(switches, cache_gradients=True)
    if not switches.cache_gradients:
        yield cached
    groups = run.groups(cached)
    limit = max((group.tokens for group in groups), default=0)
    shortest = max((group.length for group in groups), default=0)
    while limit > shortest:
        limit = max(shortest, limit // 2)
        yield replace(cached, max_tokens_per_forward=limit)


LADDER = (
    _Step(
        ("logits_chunk_size",),
        _smaller_chunks,
        "fewer logits over the vocabulary exist at one time",
        "next to nothing",
    ),
    _Step(
        ("precompute_ref_log_probs",),
        _reference_first,
        "the frozen copy leaves the device before training",
        "one pass over the data before the first step, kept on disk, and saves the reference's pass in every step",
    ),
    _Step(
        ("recompute_without_image",),
        _without_image,
        "sequences without an image keep nothing, and are run again in the backward pass",
        "one more forward pass of those, which are the short ones",
    ),
    _Step(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        _smaller_batches,
        "fewer rows keep their activations at one time, and as many are summed up in a step",
        "some speed where a few rows do not fill the device",
    ),
    _Step(
        ("activation_checkpointing",),
        _checkpointing,
        "a layer keeps its input alone, and is run again in the backward pass",
        "one more forward pass, about a third more time",
    ),
    _Step(
        ("cache_gradients", "max_tokens_per_forward"),
        _group_by_group,
        "the activations of one group of sequences are kept at one time, not those of the batch",
        "one more forward pass, about a third more time",
    ),
)


def _decisions(run: Run, before: Switches, after: Switches) -> list[Decision]:
    """One decision per rung, in the ladder's order."""
    found, state = [], before
    for step in LADDER:
        names = [name for name in step.settings if getattr(before, name) != getattr(after, name)]
        if not names:
            continue
        then = replace(state, **{name: getattr(after, name) for name in names})
        found.append(
            Decision(
                switch=", ".join(names),
                before=_values(before, names),
                after=_values(after, names),
                bytes_before=run.estimate(state).total,
                bytes_after=run.estimate(then).total,
                reason=step.reason,
                cost=step.cost,
            )
        )
        state = then
    return found


def _values(switches: Switches, names: list[str]) -> str:
    return ", ".join(str(getattr(switches, name)) for name in names)


def _too_small(estimate: MemoryEstimate, budget: int, before: Switches, after: Switches, allowed: Allowed) -> str:
    changed = [n for step in LADDER for n in step.settings if getattr(before, n) != getattr(after, n)]
    even = f"even with {', '.join(f'{n}={getattr(after, n)}' for n in changed)} " if changed else ""
    largest = estimate.largest
    mend = SMALLER if largest == "weights" and not allowed.quantize else MENDS.get(largest, SHORTER)
    return (
        f"a memory_budget of {gigabytes(budget)} is too small: {even}the run takes about "
        f"{gigabytes(estimate.total)} per device, of which {largest}: {gigabytes(estimate.parts[largest])}. "
        f"{mend}{'' if allowed.caching else WITHOUT_NORMS}"
    )


SHORTER = "Use smaller images (max_pixels), shorter rows (max_length), or a smaller model"
SMALLER = "Use a smaller model, or a device with more memory"
FEWER_TRAINED = "Train adapters in place of the whole model (use_peft), or use optim='adamw_8bit'"
WITHOUT_MASTERS = (
    "Train adapters in place of the whole model (use_peft), or set float32_master_weights=False and have steps rounded"
)
WITHOUT_NORMS = "; or leave log_term_gradients_every out, which does not go with cache_gradients"
MENDS = {
    "weights": "Load the model in 4 bits (load_in_4bit), or use a smaller one",
    "reference": "Train adapters (use_peft), whose reference is the same model with them off",
    "gradients": FEWER_TRAINED,
    "optimiser": FEWER_TRAINED,
    "master weights": WITHOUT_MASTERS,
    "gradients of master weights": WITHOUT_MASTERS,
    "gradients of single terms": FEWER_TRAINED,
    "vision activations": "Freeze the vision tower and further encoders, or use smaller images (max_pixels)",
    "images": "Use smaller or fewer images (max_pixels), or fewer rows at a time",
    "vocabulary head": "Lower logits_chunk_size",
    "a copy of the embeddings": "Load the model in 16 bits (dtype: bfloat16), or train without soft prompts",
    "driver and allocator": SMALLER,
}


def gigabytes(size: int) -> str:
    """Bytes for reading, in units of 2^30 or 2^20."""
    return f"{size / GIB:.2f} GB" if size > 2**27 else f"{size / 2**20:.1f} MB"
