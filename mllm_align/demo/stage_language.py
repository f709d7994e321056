"""Stage LM: next-token training on scenes with the prior, questions and a caption sharing one image.

A packed sequence is the prefix "USER: <image>" followed by branches "question ASSISTANT: answer". A branch sees the
prefix and itself, and its positions continue the prefix, so each branch is exactly the chat template's rendering of
one conversation. One batch in ten has no image, which gives the language model a prior of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mllm_align.data.world.catalogue import World
from mllm_align.data.world.rows import ANNOTATION_NOISE, annotate
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import generator, iter_scenes
from mllm_align.demo.stage_vision import pixel_values

# Existence and relations are learned last, so they are asked most.
ALWAYS_ASKED = ("existence", "existence", "relation")
SOMETIMES_ASKED = ("colour", "size", "side", "count")
TEXT_ONLY_EVERY = 10


@dataclass(frozen=True)
class Packed:
    """One batch: ids, positions and branch numbers (B, T), the mask (B, 1, T, T), and the answers' tokens.

    `predict` (B, T) marks the tokens from which an answer token is predicted; `targets` are those answer tokens in
    order, and `last` (B, K) is the position of the last question token of each branch.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    predict: Tensor
    targets: Tensor
    last: Tensor


class Packer:
    """Packs conversations about the same picture; `turns` are (question, answer) pairs, as many for every scene."""

    def __init__(self, processor: LlavaProcessor, num_image_tokens: int) -> None:
        self.tokenizer = processor.tokenizer
        start = self.tokenizer.bos_token + "USER: "
        self.prefixes = {
            True: self._ids([start + processor.image_token * num_image_tokens])[0],
            False: self._ids([start])[0],
        }

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def __call__(self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool) -> Packed:
        """The batch of B scenes with K turns each."""
        flat = [turn for scene in turns for turn in scene]
        prompts = self._ids([f"{question} ASSISTANT: " for question, _ in flat])
        answers = self._ids([answer + self.tokenizer.eos_token for _, answer in flat])
        prefix, per_scene = self.prefixes[with_image], len(turns[0])
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        longest = max(sum(lengths[i : i + per_scene]) for i in range(0, len(flat), per_scene))
        shape = (len(turns), len(prefix) + longest)
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        positions = torch.zeros(shape, dtype=torch.long)
        branches = torch.full(shape, -1)
        predict = torch.zeros(shape, dtype=torch.bool)
        last = torch.zeros(len(turns), per_scene, dtype=torch.long)
        ids[:, : len(prefix)] = torch.tensor(prefix)
        positions[:, : len(prefix)] = torch.arange(len(prefix))
        branches[:, : len(prefix)] = 0
        stop = len(prefix)
        for number in range(len(flat)):
            row, branch = divmod(number, per_scene)
            at = stop if branch else len(prefix)
            stop = at + lengths[number]
            answer_at = at + len(prompts[number])
            ids[row, at:stop] = torch.tensor(prompts[number] + answers[number])
            positions[row, at:stop] = torch.arange(len(prefix), len(prefix) + lengths[number])
            branches[row, at:stop] = branch + 1
            predict[row, answer_at - 1 : stop - 1] = True
            last[row, branch] = answer_at - 1
        targets = torch.tensor([token for answer in answers for token in answer])
        return Packed(ids, positions, block_mask(branches), predict, targets, last)


def block_mask(branches: Tensor) -> Tensor:
    """(B, 1, T, T) additive float32 mask from branch numbers (B, T): 0 the prefix, -1 padding.

    A token sees what comes before it in the prefix and in its own branch.
    """
    mine, other = branches[:, :, None], branches[:, None, :]
    causal = torch.ones(branches.shape[1], branches.shape[1], dtype=torch.bool).tril()
    allowed = causal & ((other == 0) | (other == mine))
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return mask[:, None]


def hidden_states(model: LlavaForConditionalGeneration, packed: Packed, pixels: Tensor | None) -> Tensor:
    """(B, T, d) the language model's output on a packed batch."""
    device = model.device
    output = model.model(
        input_ids=packed.input_ids.to(device),
        pixel_values=pixels.to(device) if pixels is not None else None,
        attention_mask=packed.attention_mask.to(device),
        position_ids=packed.position_ids.to(device),
        use_cache=False,
    )
    return output.last_hidden_state


def train_language(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    world: World,
    steps: int,
    seed: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    tower_scale: float = 0.1,
    distribution: str = "prior",
    noise: float = ANNOTATION_NOISE,
) -> Iterator[float]:
    """Train the whole model in place, yielding the loss of each step.

    Args:
        model: The model after stage V.
        processor: Its processor.
        world: Whose training split is drawn from.
        steps: Optimiser steps.
        seed: Of scenes, questions and noise.
        batch_size: Scenes per step; each brings six questions and a caption.
        learning_rate: Peak, after a warm-up of a twentieth and before a cosine to zero.
        tower_scale: The tower's part of the learning rate.
        distribution: Of the scenes.
        noise: Of the answers (`annotate`).
    """
    rng = generator("stage language", seed)
    stream = iter_scenes("train", seed, distribution, world)
    packer = Packer(processor, model.config.image_seq_length)
    optimizer = _optimizer(model, learning_rate, tower_scale)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps))
    for step in range(steps):
        scenes: list[Scene] = [next(stream) for _ in range(batch_size)]
        kinds = [_kinds(rng) for _ in scenes]
        turns = [
            [annotate(scene, kind, rng, noise, world) for kind in asked]
            for scene, asked in zip(scenes, kinds, strict=True)
        ]
        with_image = step % TEXT_ONLY_EVERY != TEXT_ONLY_EVERY - 1
        packed = packer(turns, with_image)
        hidden = hidden_states(model, packed, pixel_values(processor, scenes) if with_image else None)
        logits = model.lm_head(hidden[packed.predict.to(hidden.device)])
        loss = F.cross_entropy(logits.float(), packed.targets.to(logits.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def _kinds(rng: Random) -> tuple[str, ...]:
    return (*ALWAYS_ASKED, *rng.sample(SOMETIMES_ASKED, 3), "caption")


def _optimizer(model: LlavaForConditionalGeneration, rate: float, tower_scale: float) -> torch.optim.AdamW:
    tower = list(model.model.vision_tower.parameters())
    inside = {id(parameter) for parameter in tower}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    groups = [{"params": others, "lr": rate}, {"params": tower, "lr": rate * tower_scale}]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def _cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
