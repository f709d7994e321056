"""What the base model can do and what it hallucinates: the figures of its model card."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mllm_align.data.world.pairs import pair_questions
from mllm_align.data.world.questions import Question, existence_questions, questions
from mllm_align.data.world.scenes import Scene
from mllm_align.demo.stage_language import Packer, hidden_states
from mllm_align.demo.stage_vision import pixel_values


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Sequence[Question],
    shown: Sequence[Scene] | None = None,
    batch_size: int = 100,
) -> list[str]:
    """The first word that greedy decoding gives to each question.

    Args:
        model: Evaluated as it is; put into evaluation mode.
        processor: Its processor.
        asked: The questions.
        shown: The scenes whose pictures are shown, where they are not the questions' own.
        batch_size: Questions per forward pass.
    """
    packer = Packer(processor, model.config.image_seq_length)
    scenes = list(shown) if shown is not None else [question.scene for question in asked]
    found: list[str] = []
    model.eval()
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        packed = packer([[(question.text, "")] for question in batch], with_image=True)
        pixels = pixel_values(processor, scenes[start : start + batch_size])
        hidden = hidden_states(model, packed, pixels)
        logits = model.lm_head(hidden[torch.arange(len(batch)), packed.last[:, 0]])
        found += processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return found


def score_base(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, num_scenes: int = 500, seed: int = 0
) -> dict[str, float]:
    """Accuracies on fresh test scenes, by the first word of greedy decoding.

    Keys: `in_distribution` and `adversarial` with their kinds of question; `pairs` (both right); `existence` and its
    `yes_rate` (adversarial polling); `prior_answers` (how often a wrong adversarial answer is the prior's);
    `other_image` (adversarial questions under another scene's picture); `held_out_combinations` (colours in
    adversarial scenes) and `held_out_paraphrases` (in distribution).
    """

    def hits(asked: Sequence[Question], shown: Sequence[Scene] | None = None) -> list[bool]:
        given = answers(model, processor, asked, shown)
        return [answer == question.answer for answer, question in zip(given, asked, strict=True)]

    familiar = questions("test_in_distribution", num_scenes, seed)
    broken = questions("test_adversarial", num_scenes, seed)
    scores = _by_kind("in_distribution", familiar, hits(familiar))
    given = answers(model, processor, broken)
    right = [answer == question.answer for answer, question in zip(given, broken, strict=True)]
    scores |= _by_kind("adversarial", broken, right)
    colours = [
        hit for hit, question in zip(right, broken, strict=True) if question.held_out and question.kind == "colour"
    ]
    scores["held_out_combinations"] = _mean(colours)
    misled = [
        answer == question.prior_answer
        for answer, question in zip(given, broken, strict=True)
        if answer != question.answer and question.prior_answer not in (None, question.answer)
    ]
    scores["prior_answers"] = _mean(misled)
    # Two questions of one scene stand together: a shift by a few gives every one another scene.
    scores["other_image"] = _mean(hits(broken, [question.scene for question in broken[7:] + broken[:7]]))
    unseen = questions("test_in_distribution", num_scenes, seed, paraphrases="held_out")
    scores["held_out_paraphrases"] = _mean(hits(unseen))
    pairs = hits(pair_questions(num_scenes, seed))
    scores["pairs"] = _mean([one and other for one, other in zip(pairs[::2], pairs[1::2], strict=True)])
    polled = existence_questions("adversarial", 2 * num_scenes, seed)
    said = answers(model, processor, polled)
    scores["existence"] = _mean([answer == question.answer for answer, question in zip(said, polled, strict=True)])
    scores["yes_rate"] = _mean([answer == "yes" for answer in said])
    return scores


def _by_kind(name: str, asked: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    kinds = sorted({question.kind for question in asked})
    return {name: _mean(right)} | {
        f"{name}/{kind}": _mean([hit for hit, question in zip(right, asked, strict=True) if question.kind == kind])
        for kind in kinds
    }


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / max(1, len(hits))
