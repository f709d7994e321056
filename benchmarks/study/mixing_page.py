"""The page of the mixing study: towers, mining, each arm's numbers, and its difference to both controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from intervals import Columns, Interval, interval, paired_interval
from mixing_arms import (
    ARMS,
    BASE,
    BATCH,
    CONTROL,
    LONG_ARMS,
    LONG_OPTIONS,
    LONG_STEPS,
    SEEDS,
    SHORT_ARMS,
    STEPS,
    TUNED,
    Run,
    twin,
)
from records import Records

METRICS = ("colour", "colour_pairs", "others", "other_pairs")


def finished(records: Records, steps: int) -> dict[str, list[dict[str, Any]]]:
    """By arm the records of all seeds at one learning rate; arms that lack one are left out, the base is first."""
    found: dict[str, list[dict[str, Any]]] = {}
    base = records.get(BASE)
    if base is not None:
        found["base"] = [base]
    for arm in ARMS:
        own = [run for run in records.found if isinstance(run, Run) and run.arm == arm and run.steps == steps]
        for rate in dict.fromkeys(run.learning_rate for run in own):
            seeds = [records.get(Run(arm, rate, seed, steps)) for seed in SEEDS]
            if None not in seeds:
                found[arm] = [record for record in seeds if record is not None]
    return found


def columns_of(records: Sequence[dict[str, Any]], metric: str) -> Columns:
    """What the runs of an arm gave for one metric."""
    tests = [record["test"][metric] for record in records]
    values = np.array([test["values"] for test in tests], dtype=np.float64)
    return Columns(values, np.ones_like(values), [str(cluster) for cluster in tests[0]["clusters"]])


def table(records: Records, steps: int) -> str:
    """Markdown: per cent with 95 % intervals over seeds and clusters, and what an arm costs."""
    head = ("arm", "learning rate", *METRICS, "image tokens", "trained parameters", "seconds a run")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, own in finished(records, steps).items():
        cells = [_written(interval(columns_of(own, metric))) for metric in METRICS]
        lines.append(f"| {' | '.join((arm, _rate(own), *cells, *_costs(own)))} |")
    return "\n".join(lines)


def differences(records: Records, steps: int) -> str:
    """Markdown: each arm minus the arm without a mixer, and minus its own mixer with the blind tower once more."""
    found = finished(records, steps)
    lines = [f"| {' | '.join(('arm', *METRICS))} |", "|---" * (len(METRICS) + 1) + "|"]
    for arm in found:
        for other in (CONTROL, twin(arm) if arm in ARMS else None):
            if arm in ("base", CONTROL) or other not in found:
                continue
            cells = [
                _written(paired_interval(columns_of(found[arm], metric), columns_of(found[other], metric)), "+")
                for metric in METRICS
            ]
            lines.append(f"| {' | '.join((f'{arm} - {other}', *cells))} |")
    return "\n".join(lines)


def in_short(records: Records, steps: int, arms: Iterable[str] = SHORT_ARMS) -> str:
    """In words: on each metric, which arms' intervals of the difference to the control leave out zero."""
    found = finished(records, steps)
    said = []
    for metric in METRICS if CONTROL in found else ():
        control, ahead, behind = columns_of(found[CONTROL], metric), [], []
        for arm in (arm for arm in found if arm not in ("base", CONTROL)):
            cell = paired_interval(columns_of(found[arm], metric), control)
            if cell.low > 0 or cell.high < 0:
                (ahead if cell.low > 0 else behind).append(f"`{arm}` {100 * cell.value:+.1f}")
        clear = [f"{word} {', '.join(arms)}" for word, arms in (("ahead", ahead), ("behind", behind)) if arms]
        said.append(f"- {metric}, against `{CONTROL}`: {'; '.join(clear) or 'no arm is clearly ahead or behind'}.")
    missing = [arm for arm in arms if arm not in found]
    if missing:
        said.append(f"- Not all seeds have run of: {', '.join(missing)}.")
    return "\n".join(said)


def towers_table(probes: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: what probes read off each tower."""
    names = list(next(iter(probes.values())))
    lines = [f"| {' | '.join(('tower, probe', *names))} |", "|---" * (len(names) + 1) + "|"]
    for tower, own in probes.items():
        lines.append(f"| {' | '.join((tower, *(f'{100 * own[name]:.1f}' for name in names)))} |")
    return "\n".join(lines)


def mining_table(mining: Mapping[str, Any]) -> str:
    """Markdown: what mining finds with either pair of bounds."""
    settings = {name: own for name, own in mining.items() if isinstance(own, Mapping)}
    names = list(next(iter(settings.values())))
    lines = [f"| {' | '.join(('bounds', *names))} |", "|---" * (len(names) + 1) + "|"]
    for name, own in settings.items():
        shown = (f"{own[key]:.2f}" if isinstance(own[key], float) else str(own[key]) for key in names)
        lines.append(f"| {' | '.join((name, *shown))} |")
    return "\n".join(lines)


def page(
    records: Records, probes: Mapping[str, Any], mining: Mapping[str, Any], steps: int = STEPS, long: int = LONG_STEPS
) -> str:
    """The whole page: towers, mining, all arms at `steps`, and what has run of the longer ones."""
    text = PAGE.format(
        towers=towers_table(probes),
        images=mining["images"],
        pairs=mining["pairs of images"],
        planted=mining["planted of each kind"],
        mining=mining_table(mining),
        steps=steps,
        seeds=len(SEEDS),
        tuned=TUNED,
        short=in_short(records, steps),
        table=table(records, steps),
        differences=differences(records, steps),
    )
    return text + longer(records, long)


def longer(records: Records, steps: int) -> str:
    """The section of longer runs; nothing if no arm has all seeds."""
    if set(finished(records, steps)) <= {"base"}:
        return ""
    return LONGER.format(
        steps=f"{steps:,}",
        rows=f"{steps * BATCH:,}",
        depth=LONG_OPTIONS["sva"]["depth"],
        control=CONTROL,
        short=in_short(records, steps, LONG_ARMS),
        table="\n".join(line for line in table(records, steps).splitlines() if not line.startswith("| base ")),
        differences=differences(records, steps),
    )


def _rate(own: Sequence[dict[str, Any]]) -> str:
    rate = own[0]["run"]["learning_rate"]
    return f"{rate:g}" if rate else ""


def _costs(own: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    if "seconds" not in own[0]:
        return ("", "", "")
    seconds = np.median([record["seconds"] for record in own])
    return (str(own[0]["image_tokens"]), f"{own[0]['trained_parameters']:,}", f"{seconds:.0f}")


def _written(cell: Interval, sign: str = "") -> str:
    return f"{100 * cell.value:{sign}.1f} ({100 * cell.low:{sign}.1f}, {100 * cell.high:{sign}.1f})"


PAGE = """# Does a mixer give a model what its own tower is blind to?

Written by `python benchmarks/study/mixing.py`. On the rendered world: a CLIP-like tower that is blind to colour by its
training, a DINOv2 that learned to see it without a word, and a LLaVA of a million parameters on the blind one. What
follows is one pair of towers and one base model.

## The towers

Accuracy of probes on the patch tokens of objects, on scenes that no probe was trained on, in per cent; a guess of the
colour is right one time in six.

{towers}

## Mining

Among {images} pictures ({pairs} pairs of pictures) lie {planted} minimal pairs of each kind: two pictures that differ
in the colour, the size, the side or the shape of one thing. To be found are all pairs, planted or there by chance,
that show the same shapes in the same sizes and differ in colours; where things are may differ, too, unless they were
planted. Cosines of the blind tower must be above one bound, those of the seeing tower below another; the second was
chosen on another gallery.

{mining}

## Mixers

Every arm trains LoRA and the projector (but `sva` and `x_former` take its place) for {steps} steps on the same rows,
of which a third ask for colour; mixers that change the model from the start have their first stage (mixer and
projector alone) within these steps. One learning rate, chosen on validation with `{tuned}`, is that of all arms.
{seeds} seeds, per cent with 95 % intervals over seeds and scenes. `colour` is what the model's own tower is blind to;
`others` are existence, size, side, count and relation; of pairs both questions must be right. Arms called `_blind` mix
in the model's own blind tower once more: the same parameters and tokens, nothing new to see. Seconds are of training
on one CPU thread beside other work, so they tell little; tokens and parameters are exact.

{short}

{table}

Minus the arm without a mixer, and minus the same mixer with the blind tower, in points:

{differences}
"""

LONGER = """
## Longer

The arms that had hardly found colour by then, and their control, for {steps} steps on {rows} rows. Half of these ask
for a caption, which names all that a picture has: questions alone tell a mixer that starts anew too little. Each arm
has the learning rate that its own validation chose. `sva` has {depth} layers here, as Cambrian-1's, where it had one
above: with one, single trial runs on captions and on questions learned no colour. That and the captions were chosen on
validation, for `sva` more than for others. `x_former` begins otherwise than above: at BERT's 0.02 times the root of
how much narrower it is than BERT (2.8 here), so that attention is as sharp. With 0.02 itself, where attention begins
nearly uniform, it had come to 22.9 in these steps, and once, with another tower, to chance in twice as many. Towers
and base model were trained once more by the same commands, and again for `x_former` and `{control}`.
Against a control on their own towers (15.6) `interleave` stood at +39.0 of colour and -4.8 (-9.3, -0.3) of others,
`sva` at +65.9 and -3.3 (-7.1, +0.5).
`x_former_staged` is X-Former as its paper has it: a masked autoencoder as the further tower, and a first stage of its
own, on captions.

{short}

{table}

{differences}
"""
