"""What became of written answers: how many could not be read, are empty, were cut, or are missing."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_align_eval.items import Answer, Item

Shares = dict[str, float | int | bool]


def shares_of(items: Sequence[Item], answers: Sequence[Answer]) -> Shares:
    """Of the answers to the items of one split: their number `n`, and shares of them.

    `unreadable`, and of these `empty` and `truncated_unreadable` (cut too); `abstained`; `errors`, where the model
    failed and there is none; `truncated` at the limit of their length. `open` says whether all questions are open.
    """

    def share(chosen: Sequence[bool]) -> float:
        return sum(chosen) / len(answers)

    invalid = [answer.state == "invalid" for answer in answers]
    return {
        "n": len(answers),
        "open": not any(item.is_closed for item in items),
        "unreadable": share(invalid),
        "empty": share([bad and not answer.text.strip() for bad, answer in zip(invalid, answers, strict=True)]),
        "abstained": share([answer.state == "abstained" for answer in answers]),
        "errors": share([answer.state == "error" for answer in answers]),
        "truncated": share([answer.truncated for answer in answers]),
        "truncated_unreadable": share([bad and a.truncated for bad, a in zip(invalid, answers, strict=True)]),
    }
