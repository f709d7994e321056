"""Multiple choice in other ways than by its letters: options in the opposite order, and by their wording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mllm_align_eval.arms import Arm
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.runner import answer_arms
from mllm_align_eval.statistics import ClusterBootstrap, mean_metric

REVERSED, WORDED = "reversed", "worded"
WAYS = ("letters", "reversed", "same_option", "wording")


def has_letters(item: Item) -> bool:
    """Whether a question's choices are letters that its prompt gives a wording to."""
    return bool(item.labels) and all(
        len(_letter(choice)) == 1 and _letter(choice).isalpha() for choice in item.choices
    )


def _letter(choice: str) -> str:
    return choice.strip("()")


def mirrored(item: Item) -> Item | None:
    """The same question with its options in the opposite order, the letters where they were.

    None where an option is not found behind its letter.
    """
    spans, start = [], 0
    for choice, label in zip(item.choices, item.labels, strict=True):
        letter = _letter(choice)
        marker = rf"(?:\({letter}\)|(?<!\w){letter}[.:)])\s*"
        found = re.search(f"(?i:{marker})({re.escape(label)})(?!\\w)", item.prompt[start:])
        if found is None:
            return None
        spans.append((start + found.start(1), start + found.end(1)))
        start += found.end(1)
    prompt = item.prompt
    for (begin, end), label in zip(reversed(spans), item.labels, strict=True):
        prompt = prompt[:begin] + label + prompt[end:]
    place = len(item.choices) - 1 - item.choices.index(item.answer)
    return replace(
        item,
        id=f"{item.id}/{REVERSED}",
        prompt=prompt,
        answer=item.choices[place],
        labels=item.labels[::-1],
        pair=None,
        truth={},
    )


def worded(item: Item) -> Item | None:
    """The same question, answered by the wording of an option; None where two options say the same."""
    if len(set(item.labels)) < len(item.labels) or not all(item.labels):
        return None
    answer = item.labels[item.choices.index(item.answer)]
    return replace(item, id=f"{item.id}/{WORDED}", choices=item.labels, answer=answer, labels=(), pair=None, truth={})


@dataclass(frozen=True)
class Checks:
    """What is asked beside the questions by letter.

    Attributes:
        items: Those that have letters.
        reversed: By the id of each, the question in the opposite order, where that can be made.
        worded: Likewise by wording.
    """

    items: tuple[Item, ...]
    reversed: Mapping[str, Item]
    worded: Mapping[str, Item]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Checks:
        """Of those of some questions that have letters."""
        own = tuple(item for item in items if has_letters(item))
        turned = {item.id: other for item in own if (other := mirrored(item)) is not None}
        said = {item.id: other for item in own if (other := worded(item)) is not None}
        return cls(own, turned, said)

    @property
    def asked(self) -> list[Item]:
        """All further questions."""
        return [*self.reversed.values(), *self.worded.values()]


def letter_checks(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    arms: Sequence[Arm],
    by_letter: Mapping[str, Sequence[Answer]],
    *,
    batch_size: int,
    cache: AnswerCache | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Asks multiple-choice questions again in two other ways, by log-probability, with the right picture.

    Args:
        model: As in `answer_arms`.
        processor: Its processor.
        items: All questions; those with letters are asked.
        arms: The arms.
        by_letter: Per arm the answers of these questions by log-probability.
        batch_size: Questions at a time.
        cache: Where answers are kept.

    Returns:
        Per benchmark and arm, for each of `WAYS`: `value`, `low` and `high` (a share of the questions, with its 95 %
        interval over clusters) and `n`.

    Raises:
        ValueError: If no question has letters.
    """
    checks = Checks.of(items)
    if not checks.asked:
        raise ValueError("--letter-checks: no question of this run has options by letter")
    found = answer_arms(
        model,
        processor,
        checks.asked,
        arms,
        images=("right",),
        methods=("logprob",),
        batch_size=batch_size,
        cache=cache,
    )
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in arms:
        given = {answer.item: answer for answer in (*by_letter[arm.name], *found[arm.name]["logprob", "right"])}
        for benchmark in dict.fromkeys(item.benchmark for item in checks.items):
            own = replace(checks, items=tuple(item for item in checks.items if item.benchmark == benchmark))
            told.setdefault(benchmark, {})[arm.name] = measured(own, given)
    return told


def measured(checks: Checks, given: Mapping[str, Answer]) -> dict[str, Any]:
    """The numbers of one arm on one benchmark; a way that no question could be asked in is left out."""
    values: dict[str, list[tuple[float, str]]] = {way: [] for way in WAYS}
    for item in checks.items:
        letter = given[item.id]
        values["letters"].append((float(letter.right), item.cluster))
        turned, said = checks.reversed.get(item.id), checks.worded.get(item.id)
        if turned is not None:
            other = given[turned.id]
            values["reversed"].append((float(other.right), item.cluster))
            values["same_option"].append((float(_option(item, letter) == _option(turned, other)), item.cluster))
        if said is not None:
            scores = given[said.id].scores
            per_byte = [score / len(label.encode()) for score, label in zip(scores, said.choices, strict=True)]
            best = said.choices[max(range(len(per_byte)), key=per_byte.__getitem__)]
            values["wording"].append((float(best == said.answer), item.cluster))
    return {way: _estimate(entries) for way, entries in values.items() if entries}


def _option(item: Item, answer: Answer) -> str | None:
    """The wording of what was chosen."""
    return None if answer.choice is None else item.labels[item.choices.index(answer.choice)]


def _estimate(entries: Sequence[tuple[float, str]]) -> dict[str, Any]:
    numbers, clusters = zip(*entries, strict=True)
    return ClusterBootstrap(clusters).estimate(mean_metric(numbers)).as_dict()
