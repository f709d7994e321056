"""Hard negatives by vectors, by what the model would say and by both, as a part of the discriminative page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from discriminative_arms import BASE, DUAL, DUAL_TWICE, LONGER, PREDICTED, PREDICTED_CONTROL, TWICE, rivals_of
from discriminative_evaluation import NEGATIVES
from discriminative_likelihood import LIKELIHOOD, TOGETHER
from discriminative_metrics import WAYS, Found, cell, columns_of, difference, written

READINGS: Mapping[str, str] = {NEGATIVES: "vectors", LIKELIHOOD: "likelihood", TOGETHER: "both"}
METRICS = (*WAYS, "hard negatives")


def told_by(found: Found) -> str:
    """Markdown: of arms whose likelihoods were asked for, what they tell apart by which reading; then differences."""
    lines = [f"| arm | by | {' | '.join(METRICS)} |", "|---" * (2 + len(METRICS)) + "|"]
    for arm in (BASE, PREDICTED_CONTROL, PREDICTED, DUAL, LONGER, TWICE, DUAL_TWICE):
        for reading, name in READINGS.items():
            if arm in found and columns_of(found[arm], METRICS[-1], reading) is not None:
                cells = (cell(found, arm, metric, reading) for metric in METRICS)
                lines.append(f"| {arm} | {name} | {' | '.join(cells)} |")
    lines += ["", f"| arms | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
    for arm, reading, other, others in _compared():
        each = [difference(found, arm, other, metric, (reading, others)) for metric in METRICS]
        if None not in each:
            cells = (written(value, metric, "+") for value, metric in zip(each, METRICS, strict=True) if value)
            name = f"{arm} by {READINGS[reading]} - {other} by {READINGS[others]}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gained(found: Found) -> list[str]:
    """In words: how arms that predict short captions stand to dual encoders by each reading, one to its control."""
    lines = []
    for arm, other in _rivals():
        each = {
            name: difference(found, arm, other, METRICS[-1], (reading, NEGATIVES))
            for reading, name in READINGS.items()
        }
        texts = [f"by {name} {written(value, METRICS[-1], '+')}" for name, value in each.items() if value is not None]
        if texts:
            lines.append(f"- Hard negatives, `{arm}` minus `{other}` by its vectors: {', '.join(texts)}.")
    alone = difference(found, PREDICTED, PREDICTED_CONTROL, METRICS[-1], (LIKELIHOOD, LIKELIHOOD))
    if alone is not None:
        own = cell(found, PREDICTED_CONTROL, METRICS[-1], LIKELIHOOD)
        less = f"`{PREDICTED}` minus that {written(alone, METRICS[-1], '+')}"
        lines.append(f"- By likelihood the control without a contrast tells {own} of the hard negatives, {less}.")
    return lines


def _compared() -> Iterator[tuple[str, str, str, str]]:
    yield PREDICTED, LIKELIHOOD, BASE, LIKELIHOOD
    yield PREDICTED, LIKELIHOOD, PREDICTED_CONTROL, LIKELIHOOD
    yield PREDICTED, TOGETHER, PREDICTED_CONTROL, LIKELIHOOD
    for reading in READINGS:
        yield from ((arm, reading, other, NEGATIVES) for arm, other in _rivals())


def _rivals() -> Iterator[tuple[str, str]]:
    yield from ((arm, other) for arm in (PREDICTED, TWICE) for other in rivals_of(arm))
