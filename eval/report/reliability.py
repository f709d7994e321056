"""Calibration in the report: reliability diagrams of all arms, errors with intervals, and a sentence on the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align_eval.report.comparison import Roles, compare, finite
from mllm_align_eval.report.detection import poll_label
from mllm_align_eval.report.labels import arm_label, interval, number
from mllm_align_eval.report.leading import benchmarks_of, primary
from mllm_align_eval.report.metric_names import parse_key

MAX_DIAGRAMS = 6
LEFT_OUT = "base_16bit"
# Where the axis of confidence begins, and how many steps it has.
AXES = ((0.5, 5), (0.25, 3), (0.0, 4))
BINNING = (
    "Confidence is the probability of the most probable choice, among the choices. The expected calibration error is "
    "the mean over questions of |accuracy \N{MINUS SIGN} confidence| in bins of equal mass (ten, cut at quantiles of "
    "each model's confidence; Naeini et al. 2015, Guo et al. 2017). A bin of few questions is mostly noise: by "
    "chance, a perfectly calibrated model of the same confidences would show about what the table says, were the "
    "questions independent. The Brier score is the mean squared error of the choices' probabilities, halved: 0 is "
    "best, 1 is sure and wrong (Brier 1950)."
)


@dataclass(frozen=True)
class Diagram:
    """One split: per arm its bins as (confidence, accuracy, questions), in per cent, on axes from `low` to 100.

    Positions of the drawing are per cents of its box, y downwards.
    """

    split: str
    title: str
    lines: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    ticks: tuple[tuple[float, str], ...]
    diagonal: tuple[float, float]
    description: str


@dataclass(frozen=True)
class CalibrationRow:
    """One split of one arm, as written."""

    split: str
    arm: str
    ece: str
    ece_bounds: str
    by_chance: str
    brier: str
    brier_bounds: str


def splits(results: Mapping[str, Any]) -> list[str]:
    """The splits with calibration; of each benchmark first the one that it is judged by."""
    found = dict.fromkeys(split for parts in results.get("calibration", {}).values() for split in parts)
    names = benchmarks_of(results)
    judged = {f"{name}/{parse_key(metric).split}" for name in names for metric in primary(results, name)}
    return sorted(found, key=lambda split: (split not in judged, "adversarial" not in split))


def diagrams(results: Mapping[str, Any]) -> list[Diagram]:
    """At most six reliability diagrams, those of what is judged first."""
    return [_diagram(results, split) for split in splits(results)[:MAX_DIAGRAMS]]


def _diagram(results: Mapping[str, Any], split: str) -> Diagram:
    arms = {
        arm: [(b["confidence"], b["accuracy"], b["n"]) for b in parts[split]["bins"]]
        for arm, parts in results["calibration"].items()
        if split in parts and arm != LEFT_OUT
    }
    # A choice of K is at least 1 / K sure, so the left of the axis may be empty.
    least = min((sure for bins in arms.values() for sure, _, _ in bins), default=0.0)
    low, steps = next(axis for axis in AXES if least >= axis[0])

    def place(sure: float, right: float) -> tuple[float, float]:
        return round((sure - low) / (1 - low) * 100, 2), round(100 - right * 100, 2)

    lines = tuple((arm, tuple(place(sure, right) for sure, right, _ in bins)) for arm, bins in arms.items())
    ticks = tuple((round(100 * i / steps, 2), f"{100 * (low + (1 - low) * i / steps):g}") for i in range(steps + 1))
    spoken = "; ".join(
        f"{arm_label(arm)}: " + ", ".join(f"{sure:.0%} sure {right:.0%} right (n {n})" for sure, right, n in bins)
        for arm, bins in arms.items()
    )
    title = poll_label(split)
    return Diagram(split, title, lines, ticks, (100 - low * 100, 0.0), f"Reliability, {title}. {spoken}")


def calibration_rows(results: Mapping[str, Any]) -> list[CalibrationRow]:
    """Calibration error and Brier score per split and arm."""
    rows = []
    for split in splits(results):
        for arm, cells in results["arms"].items():
            ece, brier = (cells.get(f"{split}/{name}") or {} for name in ("ece", "brier"))
            if not finite(ece.get("value")):
                continue
            chance = results["calibration"].get(arm, {}).get(split, {}).get("by_chance")
            rows.append(
                CalibrationRow(
                    poll_label(split),
                    arm,
                    number(f"{split}/ece", ece["value"]),
                    interval(f"{split}/ece", ece),
                    number(f"{split}/ece", chance),
                    number(f"{split}/brier", brier.get("value")),
                    interval(f"{split}/brier", brier),
                )
            )
    return rows


def calibration_texts(results: Mapping[str, Any]) -> list[str]:
    """What became of the calibration of the first split of each benchmark; of one model alone nothing."""
    roles = Roles.of(results["arms"])
    texts, seen = [], set()
    for split in splits(results) if roles.after != roles.before else ():
        benchmark = split.split("/")[0]
        change = compare(results, roles.after, roles.before, f"{split}/ece")
        if change is None or benchmark in seen:
            continue
        seen.add(benchmark)
        metric = change.metric
        words = {1: "it is calibrated less well", -1: "it is calibrated better", 0: "no clear change"}
        bounds = interval(metric, {"low": change.low, "high": change.high}, signed=True)
        difference = f"{number(metric, change.difference, signed=True)} points" + (f", {bounds}" if bounds else "")
        texts.append(
            f"{poll_label(split)}: calibration error from {number(metric, change.second)} % to "
            f"{number(metric, change.first)} % ({difference}), {words[change.clear]}."
        )
    return texts
