"""What metrics and arms are called, what they belong to and how their numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mllm_align_eval.report.metric_names import GENERATED, MEASURES, generic_label, parse_key

KINDS = ("existence", "colour", "size", "side", "count", "relation")
MINUS = "\N{MINUS SIGN}"

# What is said of the world beside the metrics that it is judged by; of other benchmarks: `leading.BESIDE`.
KEY_METRICS = (
    "world/pair_acc",
    "world/adversarial/acc",
    "world/pope_adversarial/acc",
    "world/visual_gap",
    "world/in_distribution/acc",
)
IMAGE_METRICS = (
    "world/adversarial/acc",
    "world/adversarial/other_image_acc",
    "world/adversarial/blank_image_acc",
    "world/adversarial/no_image_acc",
)

_DETECTION = {
    "dprime": "sensitivity d\N{PRIME}",
    "criterion": "criterion c",
    "yes_rate": "share of yes",
    "auc": "area under ROC",
}
_LABELS = {
    "world/pair_acc": "Pair accuracy",
    "world/adversarial/acc": "Adversarial accuracy",
    "world/in_distribution/acc": "In-distribution accuracy",
    "world/pope_random/acc": "Existence polling, random",
    "world/pope_popular/acc": "Existence polling, popular",
    "world/pope_adversarial/acc": "Existence polling, adversarial",
    **{f"world/adversarial/{kind}_acc": f"Adversarial, {kind}" for kind in KINDS},
    "world/adversarial/other_image_acc": "Adversarial, another scene's image",
    "world/adversarial/blank_image_acc": "Adversarial, blank image",
    "world/adversarial/no_image_acc": "Adversarial, no image",
    "world/visual_gap": "Visual gap",
    **{
        f"world/pope_{regime}/{measure}": f"{regime.capitalize()} polling, {label}"
        for regime in ("adversarial", "popular", "random")
        for measure, label in _DETECTION.items()
    },
    "world/adversarial/follows_prior": "Answers that follow the prior",
    "world/pair_item_acc": "Questions of pairs, one by one",
}

_NOTES = {
    "world/pair_acc": "two scenes that differ in one fact, one question; both must be right",
    "world/adversarial/acc": "all kinds of question, scenes that break the prior",
    "world/in_distribution/acc": "scenes like those of training",
    "world/pope_adversarial/acc": "object-matched; text alone gets half",
    "world/visual_gap": "adversarial accuracy with the right image minus with another scene's",
    "world/adversarial/follows_prior": "on prior-broken scenes, where the prior is wrong; lower is better",
    "world/pope_adversarial/criterion": "0 is neutral, below 0 leans to yes",
}

_ARMS = {"base": "Base", "control": "Control", "aligned": "Aligned", "base_16bit": "Base, 16 bit"}
_ARM_NOTES = {
    "base": "before training, the same load with the adapters off",
    "control": "plain next-token loss on the same pairs and the same replay, as many steps",
    "aligned": "the preference objective on the pairs, with replay",
    "base_16bit": "before training, without quantisation",
}


def metric_label(metric: str) -> str:
    """What a metric is called for people; its own name where nothing better is known."""
    plain = metric.removesuffix(GENERATED)
    if plain not in _LABELS:
        return generic_label(metric) or metric
    return _LABELS[plain] + (", generated" if plain != metric else "")


def inline_label(metric: str) -> str:
    """A metric's label within a sentence."""
    label = metric_label(metric).replace(": ", " ", 1)
    return label[0].lower() + label[1:] if metric.removesuffix(GENERATED) in _LABELS else label


def metric_note(metric: str) -> str:
    """Half a sentence on how to read the metric, or nothing."""
    return _NOTES.get(metric.removesuffix(GENERATED), "")


def arm_label(arm: str) -> str:
    """What an arm is called for people."""
    return _ARMS.get(arm, arm)


def arm_inline(arm: str) -> str:
    """What an arm is called within a sentence; names of the user's own are left as they are."""
    return _ARMS[arm].lower() if arm in _ARMS else arm


def arm_note(arm: str) -> str:
    """What was done to the model in this arm, where the name is one of the usual ones."""
    return _ARM_NOTES.get(arm, "")


def difference_label(name: str, arms: Mapping[str, Any]) -> str:
    """The label of a difference such as "aligned-base"; arms may have hyphens in their names."""
    for arm in arms:
        rest = name.removeprefix(f"{arm}-")
        if rest != name and rest in arms:
            return f"{arm_label(arm)} {MINUS} {arm_inline(rest)}"
    return name


def is_rate(metric: str) -> bool:
    """Whether the metric is a share or a difference of shares, written in per cent."""
    measure = MEASURES.get(parse_key(metric).measure)
    return measure is None or measure.digits is None


def number(metric: str, value: float | None, signed: bool = False) -> str:
    """A metric's value as written: per cent with one decimal (no sign of per cent), else what its measure says."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    measure = MEASURES.get(parse_key(metric).measure)
    digits = None if measure is None else measure.digits
    text = f"{value * 100:.1f}" if digits is None else f"{value:.{digits}f}"
    # A rounded zero has no direction.
    text = text.removeprefix("-") if float(text) == 0 else text
    if signed and float(text) > 0:
        text = "+" + text
    return text.replace("-", MINUS)


def with_unit(metric: str, value: float | None) -> str:
    """A metric's value with its sign of per cent, where it is a rate."""
    text = number(metric, value)
    return f"{text} %" if is_rate(metric) and value is not None and math.isfinite(value) else text


def interval(metric: str, cell: Mapping[str, Any], signed: bool = False) -> str:
    """The bounds of a cell as "46.1 to 52.5", or nothing where it has none."""
    low, high = cell.get("low"), cell.get("high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(metric, low, signed)} to {number(metric, high, signed)}"


def ordered_metrics(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All metrics of all arms: the known ones in the order of the table of labels, then the others by benchmark, then
    generated. Of two names of the same number (an accuracy under another picture has two) one is left.
    """
    names = list(dict.fromkeys(metric for cells in arms.values() for metric in cells))
    rank = {metric: i for i, metric in enumerate((*KEY_METRICS, *(m for m in _LABELS if m not in KEY_METRICS)))}
    seen = {metric: i for i, metric in enumerate(names)}
    benchmarks = {name: i for i, name in enumerate(dict.fromkeys(parse_key(metric).benchmark for metric in names))}

    def place(metric: str) -> tuple[bool, int, int, int]:
        plain = metric.removesuffix(GENERATED)
        return metric != plain, rank.get(plain, len(rank)), benchmarks[parse_key(metric).benchmark], seen[metric]

    left: dict[Any, str] = {}
    for metric in sorted(names, key=place):
        key = parse_key(metric)
        left.setdefault(key if key.measure and key.picture else metric, metric)
    return list(left.values())
