"""The rendered world: scenes with and without the prior of training, existence polling, minimal pairs.

Accuracy where the prior is broken is what a model can only have by looking; accuracy in distribution is what it must
not lose. Yes/no questions are object-matched: from the text alone half of them are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mllm_align.data.world import POPE_REGIMES, Question, existence_questions, pair_questions, questions, render
from mllm_align_eval.items import Item, Picture


def world_items(
    num_scenes: int = 600,
    num_pairs: int = 400,
    num_polls: int = 600,
    *,
    seed: int = 0,
    regimes: Sequence[str] = POPE_REGIMES,
    salt: str = "",
) -> list[Item]:
    """The test questions of the world.

    Splits: `in_distribution` and `adversarial` (all kinds of question, scenes with the prior and with the prior
    broken), `pope_<regime>` (existence polling), `pairs` (minimal pairs), and with a salt `private`.

    Args:
        num_scenes: Scenes of `in_distribution`, `adversarial` and `private`; about two questions each.
        num_pairs: Minimal pairs.
        num_polls: Questions of each polling regime.
        seed: Another seed, other scenes.
        regimes: Which of random, popular, adversarial to poll.
        salt: A secret of the user's own, for a test that nobody can have tuned on.
    """
    asked = {
        "in_distribution": questions("test_in_distribution", num_scenes, seed),
        "adversarial": questions("test_adversarial", num_scenes, seed),
        **{f"pope_{regime}": existence_questions(regime, num_polls, seed) for regime in regimes},
        "pairs": pair_questions(num_pairs, seed),
    }
    if salt:
        asked["private"] = questions("private", num_scenes, seed, salt=salt)
    return [world_item(question, split) for split, found in asked.items() for question in found]


def validation_items(num_scenes: int = 300, *, seed: int = 0) -> list[Item]:
    """Questions to choose settings by, of scenes that no test uses: splits `in_distribution` and `adversarial`."""
    asked = {
        "in_distribution": questions("validation", num_scenes, seed, distribution="prior"),
        "adversarial": questions("validation", num_scenes, seed, distribution="broken"),
    }
    return [world_item(question, split) for split, found in asked.items() for question in found]


def world_item(question: Question, split: str) -> Item:
    """One question as an item of a split; its picture is drawn when it is needed."""
    return Item(
        id=f"world/{split}/{question.id}",
        benchmark="world",
        split=split,
        kind=question.kind,
        cluster=question.cluster,
        prompt=question.text,
        pictures=(Picture(question.cluster, partial(render, question.scene)),),
        choices=question.choices,
        answer=question.answer,
        pair=question.pair_id,
        prior_answer=question.prior_answer,
    )
