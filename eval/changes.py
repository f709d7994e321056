"""Which questions the gallery shows: those whose answer changed, improvements and regressions alike.

Of open questions, which no answer is right or wrong to by itself, those of which the texts differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mllm_align_eval.items import Answer, Item
from mllm_align_eval.report.gallery import GalleryEntry, side_by_side
from mllm_align_eval.summary import Answers


def changed_answers(
    items: Sequence[Item],
    answers: Mapping[str, Answers],
    *,
    before: str = "base",
    after: str = "aligned",
    num_each: int = 24,
    num_open: int = 8,
    splits: Sequence[str] | None = None,
) -> list[GalleryEntry]:
    """Questions that one arm has right and the other wrong, read with the right image.

    Up to `num_each` that were fixed and `num_each` that were broken are taken in the order of the items, the kinds of
    question in turn: nothing is selected for how it looks.

    Args:
        items: All questions.
        answers: `answers[arm][method, image]`; generated texts are shown where there are any.
        before: The arm that is compared with.
        after: The arm whose changes are shown.
        num_each: How many of either sort.
        num_open: How many open questions.
        splits: Which splits; all if None.
    """
    said = {arm: _by_item(given) for arm, given in answers.items()}
    if before not in said or after not in said:
        return []
    fixed: list[Item] = []
    broken: list[Item] = []
    other: list[Item] = []
    for item in items:
        was, now = said[before].get(item.id), said[after].get(item.id)
        if was is None or now is None or (splits is not None and item.split not in splits):
            continue
        if not item.is_closed:
            other += [item] if was.text != now.text else []
        elif was.right != now.right:
            (fixed if now.right else broken).append(item)
    chosen = _in_turn(fixed, num_each) + _in_turn(broken, num_each) + _in_turn(other, num_open)
    return [
        _entry(item, {arm: by_item[item.id] for arm, by_item in said.items() if item.id in by_item}) for item in chosen
    ]


def _by_item(given: Answers) -> dict[str, Answer]:
    ways = (given.get((method, "right")) for method in ("generate", "logprob", "similarity"))
    entries = next((entries for entries in ways if entries), ())
    return {entry.item: entry for entry in entries}


def _in_turn(items: Sequence[Item], number: int) -> list[Item]:
    """The first `number`, one of each split and kind after the other."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.split, item.kind), []).append(item)
    ranked = [(rank, order, item) for order, group in enumerate(groups.values()) for rank, item in enumerate(group)]
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])][:number]


def _entry(item: Item, said: Mapping[str, Answer]) -> GalleryEntry:
    return GalleryEntry(
        image=side_by_side([picture.load() for picture in item.pictures]),
        question=item.prompt,
        truth=item.answer,
        prior=item.prior_answer,
        answers={arm: answer.choice or answer.text for arm, answer in said.items()},
        kind=item.kind,
        split=f"{item.benchmark}/{item.split}",
    )
