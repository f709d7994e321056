"""The study's page: what was run, what came out, what may be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conditions import CONDITIONS
from evaluation import NUM_ANSWERS, NUM_CAPTIONS, NUM_PAIRS, NUM_POLLS, NUM_SCENES, clusters
from intervals import NUM_RESAMPLES, Columns, Interval, interval, paired_interval
from methods import BETA, CLEAN, CONTROL, HEAVY, METHODS, PAIRS_PER_STEP, REPLAY_PER_STEP, Arm, arms
from mllm_align_eval.environment import machine
from mllm_align_eval.statistics import holm
from one_run import STEPS
from records import LEARNING_RATES, SEEDS, chosen_rate, run_of

LOSS = "loss"  # in nats a token; all others are shares
# Column, heading, whether more is better.
METRICS = (
    ("adversarial", "adversarial", True),
    ("pairs", "pairs", True),
    ("existence", "existence", True),
    ("visual_gap", "visual gap", True),
    ("in_distribution", "in distribution", True),
    (LOSS, "loss there", False),
    ("chair", "CHAIR_i", False),
    ("recall", "recall", True),
)
# The claims: these alone are tested, with Holm's correction over arms and metrics of a condition.
CLAIMED = ("adversarial", "pairs", "visual_gap", "in_distribution", "chair")
LEAST_SEEDS = 3


class Outcome(NamedTuple):
    """An arm with all its seeds at the chosen learning rate."""

    arm: Arm
    rate: float
    records: tuple[dict[str, Any], ...]

    def columns(self, metric: str, of: Mapping[str, Sequence[str]]) -> Columns | None:
        """The runs' numbers for one metric, if all were asked for it."""
        return columns_of(self.records, metric, of)


def columns_of(records: Sequence[dict[str, Any]], metric: str, of: Mapping[str, Sequence[str]]) -> Columns | None:
    """What the records have for one metric, over the clusters `of` each metric; None where one lacks it."""
    if any(metric not in record["test"] for record in records):
        return None
    tests = [record["test"][metric] for record in records]
    values = np.array([test["values"] for test in tests], dtype=np.float64)
    base = np.array([test.get("base", [1.0] * values.shape[1]) for test in tests], dtype=np.float64)
    return Columns(values, base, of[metric])


LIMITS = f"""## What this does not show

- All preference terms have beta {BETA:g} (the papers .1), LoRA rank 8 and the same steps; only the rate was chosen,
  between two, so each choice is at an edge. DPO's was chosen by .681 against .680 on one seed and its arms keep that
  rate, while their control has the other: differences of `dpo` arms are differences of rates, too (so of `crop` and
  `svco_one_sided`).
- Most runs were made twice, the second time for the column *loss there*, on other processors, where a run of the same
  seed is another run. In the first set, on clean pairs, the control's adversarial accuracy was 67.0 (67.9 now), that
  of three times the weight 70.4 (69.4), and on pairs, against the control, `image + next_token + replay` stood at
  +13.1 (+9.1) and `rdpo + next_token + replay` at +8.6 (+7.3, which the correction no longer tells from chance); on
  noisy pairs the first was at +5.1 (+3.8). With captions no verdict on what is described changed. Of a difference that
  one more set of runs can take away nothing is to be built.
- Single terms but `image` and `dpo`, rDPO and mDPO, and all arms without replay ran on clean pairs only.
- One small model in one rendered world."""


def finished(records: Any, condition: str) -> list[Outcome]:
    """The arms of a condition of which every seed is there."""
    found = []
    for arm in arms(condition):
        rate = chosen_rate(records, condition, arm)
        if rate is None:
            continue
        own = [records.get(run_of(condition, arm, rate, seed)) for seed in SEEDS]
        if len(own) >= LEAST_SEEDS and None not in own:
            found.append(Outcome(arm, rate, tuple(own)))
    return found


def write_page(records: Any, path: Path) -> None:
    """Writes the page from the finished runs."""
    of = clusters()
    found = {name: outcomes for name in CONDITIONS if (outcomes := finished(records, name))}
    compared = {name: _compared(outcomes, of, _control_of) for name, outcomes in found.items()}
    heavy = {name: _compared(outcomes, of, _heavy_of) for name, outcomes in found.items()}
    parts = [_head(records), _answer(compared, heavy)]
    for name, outcomes in found.items():
        parts.append(_section(name, outcomes, compared[name], records, of))
    parts += [_replay(found.get(CLEAN, []), of), LIMITS, _missing(records)]
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _head(records: Any) -> str:
    count = sum(key != "base" for key in records.found)
    methods = "\n".join(f"| `{method.name}` | {method.text} |" for method in METHODS.values())
    return f"""# Does a preference objective beat plain next-token training on the same pairs?

`python benchmarks/study/study.py` runs what is missing and writes this page ({count} runs so far). From the shipped
base, under NF4 with LoRA and a trained projector: {STEPS} steps; every step of every arm sees {PAIRS_PER_STEP} pairs
from both sides, and with *replay* {REPLAY_PER_STEP} ordinary instruction rows, which have the prior and its noise.

For every method, the control too, {len(LEARNING_RATES)} learning rates ({_rates()}) are tried with seed 0 on the clean
pairs with replay (on its own condition where it has no place there); the one with the best mean of three accuracies on
validation (scenes that no test uses) is kept for all arms of the method. Then three seeds of each arm run with it. Not
one setting was chosen by a look at the test.

The test: {_sizes()}.
Per cent, the loss apart; 95 % intervals from {NUM_RESAMPLES:,} resamples of seeds and scenes together. **The
control is next-token on both matched views of the same pairs, with the same replay**; an arm is ahead of it only where
the paired difference says so after Holm's correction over all arms and metrics of the condition.

| arm | what it trains for |
|---|---|
{methods}

*Seconds* are by the clock on machines that did other work, too, so they tell little; *tokens* are what the policy read
in a run, in thousands. This page was written on {machine()["cores"]} cores, {machine()["processor"]}."""


def _rates() -> str:
    return " and ".join(f"{rate:g}" for rate in LEARNING_RATES)


def _sizes() -> str:
    return (
        f"{NUM_SCENES} scenes with the prior and {NUM_SCENES} where it is wrong (two questions each), {NUM_PAIRS} "
        f"minimal pairs, {NUM_POLLS} existence questions, {NUM_CAPTIONS} captions,\n"
        f"and {NUM_ANSWERS} instruction rows with the prior, true ones, whose answers cost *loss there* (nats a token)"
    )


def _compared(
    outcomes: list[Outcome], of: Mapping[str, Any], control_of: Callable[[Outcome, list[Outcome]], Outcome | None]
) -> dict[tuple[Arm, str], Interval]:
    """Per arm and metric the difference to what it is compared with."""
    return {
        (outcome.arm, metric): paired_interval(own, other)
        for outcome in outcomes
        if (control := control_of(outcome, outcomes)) is not None
        for metric, _, _ in METRICS
        if (own := outcome.columns(metric, of)) and (other := control.columns(metric, of))
    }


def _answer(
    compared: Mapping[str, Mapping[tuple[Arm, str], Interval]], heavy: Mapping[str, Mapping[tuple[Arm, str], Interval]]
) -> str:
    """The answer to the page's question, condition by condition."""
    lines = [f"- **{name}** ({CONDITIONS[name].text}): {_verdict(found)}" for name, found in compared.items() if found]
    lines += [
        f"- **{name}, against `{HEAVY}`**, because an arm with a term more on the pairs also gives them more weight: "
        f"{_verdict(found)}"
        for name, found in heavy.items()
        if found
    ]
    return "\n".join(["## In short", "", *lines]) if lines else ""


def _section(
    name: str,
    outcomes: list[Outcome],
    differences: Mapping[tuple[Arm, str], Interval],
    records: Any,
    of: Mapping[str, Any],
) -> str:
    lines = [f"## {name}: {CONDITIONS[name].text}", "", _table(outcomes, records, of)]
    if differences:
        lines += ["", "Minus its control, in points:", "", _differences(differences)]
    return "\n".join(lines)


def _control_of(outcome: Outcome, outcomes: list[Outcome]) -> Outcome | None:
    wanted = outcome.arm.control
    return next((other for other in outcomes if other.arm == wanted and other.arm != outcome.arm), None)


def _heavy_of(outcome: Outcome, outcomes: list[Outcome]) -> Outcome | None:
    """The control with more weight on the pairs, for arms that have next-token and a further term on them."""
    if not outcome.arm.next_token:
        return None
    return next((other for other in outcomes if other.arm == Arm(HEAVY, replay=outcome.arm.replay)), None)


def _table(outcomes: list[Outcome], records: Any, of: Mapping[str, Any]) -> str:
    rows = [["arm", "learning rate", *(heading for _, heading, _ in METRICS), "tokens a run", "seconds"]]
    base = records.found.get("base")
    if base is not None:
        rows.append(
            ["base", "", *(_value(columns_of([base], metric, of), metric) for metric, _, _ in METRICS), "", ""]
        )
    for outcome in outcomes:
        cells = [_value(outcome.columns(metric, of), metric) for metric, _, _ in METRICS]
        seconds = np.mean([record["seconds"] for record in outcome.records])
        tokens = np.mean([record["tokens"] for record in outcome.records]) / 1000
        rows.append([outcome.arm.name, f"{outcome.rate:g}", *cells, f"{tokens:.0f}", f"{seconds:.0f}"])
    return _markdown(rows)


def _differences(differences: Mapping[tuple[Arm, str], Interval]) -> str:
    rows = [["arm", *(heading for _, heading, _ in METRICS)]]
    for arm in dict.fromkeys(arm for arm, _ in differences):
        rows.append(
            [arm.name, *(_cell(differences.get((arm, metric)), metric, signed=True) for metric, _, _ in METRICS)]
        )
    return _markdown(rows)


def _verdict(differences: Mapping[tuple[Arm, str], Interval]) -> str:
    """Which arms are ahead of their control and which behind, after Holm's correction."""
    tested = {key: value for key, value in differences.items() if key[1] in CLAIMED}
    adjusted = dict(zip(tested, holm([value.p for value in tested.values()]), strict=True))
    better = {metric: more for metric, _, more in METRICS}
    heading = {metric: text for metric, text, _ in METRICS}
    said: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    for (arm, metric), p in adjusted.items():
        if p < 0.05:
            value = tested[arm, metric].value
            ahead = (value > 0) == better[metric]
            said[ahead].setdefault(heading[metric], []).append(f"`{arm.name}` {100 * value:+.1f}")
    if not said[True] and not said[False]:
        return "no arm is clearly ahead of its control or behind it on any metric."
    words = {True: "ahead of the control", False: "behind it"}
    parts = [
        f"{words[ahead]} " + "; ".join(f"on {metric}: {', '.join(arms)}" for metric, arms in metrics.items())
        if metrics
        else f"nothing is {words[ahead]}"
        for ahead, metrics in said.items()
    ]
    return f"{'. '.join(part[:1].upper() + part[1:] for part in parts)}. All other differences may be chance."


def _replay(outcomes: list[Outcome], of: Mapping[str, Any]) -> str:
    """What replay does for the control itself."""
    by_arm = {outcome.arm: outcome for outcome in outcomes}
    with_it, without = by_arm.get(Arm(CONTROL)), by_arm.get(Arm(CONTROL, replay=False))
    if with_it is None or without is None:
        return ""
    rows = [["", *(heading for _, heading, _ in METRICS)], ["with replay minus without"]]
    for metric, _, _ in METRICS:
        own, other = with_it.columns(metric, of), without.columns(metric, of)
        rows[1].append(_cell(paired_interval(own, other) if own and other else None, metric, signed=True))
    return "\n".join(["## Replay beside the control, on clean pairs", "", _markdown(rows)])


def _missing(records: Any) -> str:
    left = [
        f"{name}: {arm.name}"
        for name in CONDITIONS
        for arm in arms(name)
        if arm not in [outcome.arm for outcome in finished(records, name)]
    ]
    return f"Not finished yet: {'; '.join(left)}." if left else ""


def _value(found: Columns | None, metric: str) -> str:
    return _cell(None if found is None else interval(found), metric)


def _cell(found: Interval | None, metric: str, *, signed: bool = False) -> str:
    """Per cent or points, losses in nats a token; nothing where a metric was not asked for."""
    if found is None:
        return ""
    scale, digits = (1, 3) if metric == LOSS else (100, 1)
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    bounds = (form.format(scale * bound) for bound in (found.low, found.high))
    return f"{form.format(scale * found.value)} ({' to '.join(bounds)})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rest)])
