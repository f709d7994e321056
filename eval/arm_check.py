"""Whether each adapter changes anything: one that does not was not trained, or not loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align_eval.arms import Arm, active_arm
from mllm_align_eval.engine import Engine, Request
from mllm_align_eval.items import Answer, ImageArm, Item, Method

NUM_SCORED = 2  # written answers whose log-probabilities are compared
Answers = Mapping[tuple[Method, ImageArm], Sequence[Answer]]
Values = list[tuple[float, ...]]


def check_arms_differ(
    model: Any, engine: Engine, items: Sequence[Item], arms: Sequence[Arm], answers: Mapping[str, Answers]
) -> None:
    """Compares each adapter with the base, bit for bit.

    Log-probabilities of choices where some were asked for. Of descriptions alone the texts; where all of these are the
    same, which a good adapter's may be, the log-probabilities of the base's first texts, measured anew for both.

    Raises:
        ValueError: If an adapter gives the base's values everywhere.
    """
    for arm in (arm for arm in arms if arm.adapter is not None):
        for base in (arm for arm in arms if arm.adapter is None):
            if _same(model, engine, items, arm, base, answers):
                raise ValueError(
                    f"arm {arm.name!r} gives the very log-probabilities of {base.name!r}: adapter {arm.adapter!r} "
                    "changes nothing (not trained, or not loaded)"
                )


def _same(
    model: Any, engine: Engine, items: Sequence[Item], arm: Arm, base: Arm, answers: Mapping[str, Answers]
) -> bool:
    first, second = (_scores(answers[each.name]) for each in (arm, base))
    if first:
        return first == second
    texts, others = (_texts(answers[each.name]) for each in (arm, base))
    if not others or texts != others:
        return False
    requests = _requests(items, others)
    if not requests:
        return False
    found = []
    for each in (arm, base):
        with active_arm(model, each):
            found.append(engine.choice_logps(requests))
    return found[0] == found[1]


def _scores(answers: Answers) -> Values:
    given = answers.get(("logprob", "right"), ())
    return [tuple(answer.scores) for answer in given if answer.state != "error"]


def _texts(answers: Answers) -> dict[str, str]:
    given = answers.get(("generate", "right"), ())
    return {answer.item: answer.text for answer in given if answer.state != "error"}


def _requests(items: Sequence[Item], texts: Mapping[str, str]) -> list[Request]:
    """The first questions with their texts as the only choice; their pictures were read before."""
    asked = [item for item in items if item.id in texts]
    shown = bool(asked and asked[0].pictures)
    # A batch either shows pictures throughout or not at all.
    alike = [item for item in asked if bool(item.pictures) == shown][:NUM_SCORED]
    return [
        Request(tuple(p.load().convert("RGB") for p in item.pictures), item.prompt, (texts[item.id] or ".",))
        for item in alike
    ]
