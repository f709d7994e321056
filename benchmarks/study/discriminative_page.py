"""The page of the discriminative study: what each arm finds, tells apart and still says, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import discriminative_arms as settings
from discriminative_arms import (
    ARMS,
    BASE,
    LEARNING_RATES,
    PREDICTED,
    REPLAYED,
    SEEDS,
    SHORT_INSTRUCTION,
    TOKENS,
    TOWER,
    TUNED,
    TWICE,
    Run,
    control_of,
    rivals_of,
    steps_of,
)
from discriminative_evaluation import LOSSES, POOL, POOLS, QUESTIONS, VALIDATION_POOL
from discriminative_metrics import (
    WAYS,
    Found,
    cell,
    columns_of,
    difference,
    finished,
    trains,
    written,
)
from discriminative_readings import gained, told_by
from discriminative_trials import tried
from intervals import interval
from mllm_align.data.world.statements import NEGATIVE_KINDS
from records import Records

EMBEDDED = ("R@1 image to text", "R@1 text to image", "R@5", *WAYS)
COMPARED = ("R@1", *WAYS, "hard negatives", "questions", "loss/captions")
ALLOWED = 2.0  # points of the world's questions that may be lost
COSTS = ("learning rate", "parameters", "of them trained", "steps", "operations, 10^12", "seconds")


def table(records: Records, steps: int, metrics: Sequence[str]) -> str:
    """Markdown: values with 95 % intervals over seeds and pictures, of arms that have any."""
    found = finished(records, steps)
    rows = [(arm, *(cell(found, arm, metric) for metric in metrics)) for arm in found]
    return _markdown(("arm", *metrics), [row for row in rows if any(row[1:])])


def costs(records: Records, steps: int) -> str:
    """Markdown: what each arm trains, and how much of the machine it takes."""
    rows = []
    for arm, own in finished(records, steps).items():
        if not trains(arm):
            continue
        run, first = Run(**own[0]["run"]), own[0]
        seconds = np.median([record["seconds"] for record in own])
        size = (f"{first['parameters']:,}", f"{first['trained_parameters']:,}", str(steps_of(run)))
        work = (f"{steps_of(run) * first['flops_per_step'] / 1e12:.1f}", f"{seconds:.0f}")
        rows.append((arm, f"{run.learning_rate:g}", *size, *work))
    return _markdown(("arm", *COSTS), rows)


def differences(records: Records, steps: int) -> str:
    """Markdown: arms with a contrast minus those without one and dual encoders, and all others minus `both`."""
    found, rows = finished(records, steps), []
    for arm, other in pairs_of(found):
        cells = [difference(found, arm, other, metric) for metric in COMPARED]
        texts = ("" if each is None else written(each, name, "+") for name, each in zip(COMPARED, cells, strict=True))
        rows.append((f"{arm} - {other}", *texts))
    return _markdown(("arms", *COMPARED), rows)


def pairs_of(found: Found) -> Iterator[tuple[str, str]]:
    """Which arms are compared with which."""
    for arm in found:
        if arm in ARMS and ARMS[arm].contrast and not ARMS[arm].dual:
            against = BASE, control_of(arm), *rivals_of(arm)
            yield from ((arm, other) for other in against if other is not None and other in found)
        if arm in ARMS and arm != TUNED and TUNED in found:
            yield arm, TUNED


def choices(records: Records, steps: int) -> str:
    """Markdown: the learning rates that were tried, and their shares of right answers on validation."""
    rows = []
    for arm, rates in LEARNING_RATES.items():
        for rate in rates:
            record = records.get(Run(arm, rate, SEEDS[0], steps))
            if record is not None:
                own = record["validation"]
                names = ("recall", "negatives", "questions", "score")
                rows.append((arm, f"{rate:g}", *(f"{100 * own[name]:.1f}" if name in own else "" for name in names)))
    return _markdown(("arm", "learning rate", "R@1", "hard negatives", "questions", "mean"), rows)


def in_short(records: Records, steps: int) -> str:
    """In words: what `both` gained on the base, with and without its tower, how it stands to the dual encoder, and
    what it lost."""
    found = finished(records, steps)
    said = []
    main = [arm for arm in (TUNED, TOWER, TOKENS, PREDICTED, TWICE) if arm in found]
    if main and BASE in found:
        after = " and ".join(f"{cell(found, arm, 'R@1')} of `{arm}`" for arm in main)
        said.append(
            f"- Retrieval: R@1 among {POOL}, both ways, from {cell(found, BASE, 'R@1')} of the base to {after}; "
            f"chance is {100 / POOL:.1f}."
        )
        for arm in (each for each in (TUNED, REPLAYED, TOWER, TOKENS, PREDICTED, TWICE) if each in found):
            lost: Any = difference(found, arm, BASE, "questions")
            told = f"`{arm}` {written(lost, 'questions', '+')} points against the base"
            said.append(f"- The world's own questions: {told}, {_verdict(lost)}")
        for arm in main:
            read: Any = difference(found, arm, BASE, "loss/captions")
            said.append(
                f"- Long captions: `{arm}` {written(read, 'loss/captions', '+')} nats a token against the base."
            )
    for arm, other in ((own, rival) for own in main for rival in rivals_of(own) if rival in found):
        each = [(metric, difference(found, arm, other, metric)) for metric in ("R@1", *WAYS, "hard negatives")]
        texts = (f"{metric} {written(value, metric, '+')}" for metric, value in each if value is not None)
        said.append(f"- `{arm}` minus `{other}`, in points: {', '.join(texts)}.")
    said += gained(found)
    missing = [arm for arm in ARMS if arm not in found]
    if missing:
        said.append(f"- Not all seeds have run of: {', '.join(missing)}.")
    return "\n".join(said)


def _verdict(lost: Any) -> str:
    if 100 * lost.low >= -ALLOWED:
        return f"so no more than {ALLOWED:g} are lost."
    if 100 * lost.value >= -ALLOWED:
        return f"no more than {ALLOWED:g} on average, but the interval leaves room for more."
    return f"more than the {ALLOWED:g} that may be."


def best_base(records: Records, steps: int) -> str:
    """Which way of reading the untrained base finds most."""
    found = finished(records, steps)
    scores = {arm: columns_of(found[arm], "R@1") for arm in found if not trains(arm)}
    known = {arm: interval(column).value for arm, column in scores.items() if column is not None}
    return max(known, key=lambda arm: known[arm]) if known else BASE


def page(records: Records, steps: int) -> str:
    """The whole page."""
    return PAGE.format(
        steps=steps,
        seeds=len(SEEDS),
        pool=POOL,
        pools=len(POOLS),
        captions=f"{settings.NUM_CAPTIONS:,}",
        per_step=settings.CAPTIONS_PER_STEP,
        long=settings.LONG_PER_STEP,
        with_long=f"{settings.NUM_LONG:,}",
        replay=settings.REPLAY_PER_STEP,
        rank=settings.LORA_RANK,
        tower_rate=settings.TOWER_RATE,
        head=settings.HEAD_DIM,
        head_rate=settings.HEAD_RATE,
        alpha=settings.LORA_ALPHA,
        longer=settings.FEWER_OPERATIONS,
        best=best_base(records, steps),
        short=in_short(records, steps),
        embedded=table(records, steps, EMBEDDED),
        instruction=SHORT_INSTRUCTION,
        told=told_by(finished(records, steps)),
        kinds=table(records, steps, NEGATIVE_KINDS),
        language=table(records, steps, (*QUESTIONS, *LOSSES)),
        costs=costs(records, steps),
        differences=differences(records, steps),
        tried=tried(),
        choices=choices(records, steps),
        first=SEEDS[0],
        validation=VALIDATION_POOL,
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


PAGE = """# Does a contrast make an encoder of a model that answers, and does it still answer?

Written by `python benchmarks/study/discriminative.py`. On the rendered world, from the shipped base, a LLaVA of a
million parameters. What follows is one base model and one kind of picture.

{short}

## What was done

Rows: {captions} balanced pictures, each with a short caption of two or three objects and one false short caption
(something swapped, replaced or added); {with_long} of them have a long caption of all objects, too. Every arm with a
contrast sees the same {per_step} of them in each of {steps} steps, {long} of which have a long one, in the same order
for one seed; controls see these {long}, or all where short captions are predicted. All that train the base (but those
called `_alone`) see {replay} ordinary instruction rows besides, with the prior and its noise, on which they predict
the answers.

| arm | what it trains for |
|---|---|
| `base`, `base_last` | nothing; read behind the instructions, by the mean of all states, or by the last as E5-V does |
| `both` | `Discriminative`: contrast of short captions, prediction of long ones |
| `contrast`, `contrast_alone` | the contrast; with replay, and without |
| `next_token` | the control: prediction of long captions; read as `base` |
| `both_more_replay` | as `both`, with four times the replay, and four times its weight |
| `both_tower` | as `both`, with eight times the replay and its weight, and a tower that trains whole |
| `both_tokens` | as `both_tower`, with images read as the mean of their tokens before the language model |
| `next_token_tower` | the control of both: `next_token` with as much replay and a tower as that of `both_tower` |
| `both_captions` | as `both_tokens`, with short captions predicted, too, where there is no long one |
| `next_token_captions` | the control of that: the same rows, predictions, replay and rates, without the contrast |
| `both_captions_twice`, `dual_twice` | as `both_captions`, and as `dual`, with twice as many steps at the same rates |
| `both_soft` | as `both`, with the instructions made soft prompts |
| `both_no_negatives` | as `both`, without the false captions |
| `both_last` | as `both`, read by the last state |
| `dual`, `dual_no_negatives` | a dual encoder on the same rows, with the false captions and without |
| `dual_longer` | as `dual`, with {longer:g} times as many steps, which makes about as many operations as `both` |

The base trains by LoRA (rank {rank}, alpha {alpha}) on its language model, with its projector whole; its tower is
frozen but in arms called `_tower`, where it trains whole at a rate of {tower_rate:g}, and in those called `_tokens`
and `_captions`, where it, the projector and linear heads of {head} numbers on both sides train at {head_rate:g}. The
dual encoder is a CLIP of about the same size that trains whole: its tower begins as the base's own, its word
embeddings as the language model's, all else of its text tower at random. Loss, temperature, schedule, rows, false
captions and steps are the same. A step of it has fewer operations, because it reads no instruction, no long caption
and no replay.

Learning rates were chosen on validation with seed {first}, by the mean of R@1 among {validation} pictures, hard
negatives and, where it can be asked, questions: one of three for dual encoders. All arms that train the base on a
frozen tower have one rate, which with pooling, rank, batch and number of steps was settled in exploratory runs, scored
on test scenes of another draw. In them the last state learned far more slowly than the mean, and LoRA on the tower did
not help. The rates and the replay of the arms whose tower trains come from two runs of half the steps, seed
{first}, scored on validation alone: with 0.005, 0.0007 for the tower and the replay of `both` R@1 30.9, hard negatives
71.3, questions 81.4; with 0.003, 0.0015 and eight times the replay 26.6, 71.3 and 87.2. Those of `both_tokens` come
from one of the trials below, and `both_captions` has the same; it was kept after runs of 300 and 600 steps with seed
{first}, scored on validation.

{choices}

## What they find and tell apart

Retrieval among {pool} pictures and their captions, each true of its own picture alone, in {pools} pools; and whether a
caption is nearer to its picture than one with something swapped, replaced or added. Ties are wrong, so vectors that
are all alike find and tell nothing. Per cent, with 95 % intervals over {seeds} seeds and pictures. The untrained base
finds more read as `{best}`.

{embedded}

By kind:

{kinds}

## What they tell apart by what they would say

A model that still answers can also be asked which of two captions it would rather say of a picture: the one that costs
fewer nats behind "{instruction}", as benchmarks of matching ask models that do not embed. And both can be added as
they are, since what the contrast multiplies cosines by is a logarithm of a probability, too (*both*). The dual encoder
has its vectors alone. A caption that leaves something open is seldom said, so that added attributes are told badly.

{told}

## What they still say

The world's own questions, as the base was trained on them (`questions`), where the prior is wrong (`adversarial`), and
about both pictures of minimal pairs (`pairs`), per cent; and nats a token of long captions and of short answers that
no training showed.

{language}

## Differences

On the same pictures, in points (losses in nats a token, where less is better).

{differences}

## What was tried for the hard negatives

What the dual encoder learns and a language model read by the mean of its states does not is mostly the shape. Single
runs of the contrast alone, seed {first}, without replay, LoRA of rank {rank}, read by that mean unless it says
otherwise; scored on validation, kinds on 60 pictures each, so that 10 points in a kind may be chance. `both_tokens` is
the one that reads image tokens before the language model.

{tried}

## What it costs

Operations are counted over a step with its backward pass; seconds are of training on one CPU thread beside other
work, so they tell little.

{costs}
"""
