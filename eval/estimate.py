"""How long a run will take, from its first batches, said before the rest is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from mllm_align.data.processes import processes
from mllm_align_eval.arm_engine import engine_of
from mllm_align_eval.arms import Arm, active_arm, identity_of
from mllm_align_eval.asking import AnswerErrors, Asking, Voice, batches_of
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.engine import Engine
from mllm_align_eval.items import IMAGE_ARMS, METHODS, Item
from mllm_align_eval.runner import is_askable

WORTH_IT = 16  # batches; of fewer the bars themselves say soon enough how long they take


def say_how_long(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    arms: Sequence[Arm],
    cache: AnswerCache,
    lengths: Mapping[str, int],
    *,
    default_length: int,
    batch_size: int,
    engine: Engine | None = None,
) -> None:
    """Prints to standard error about how long a run takes: "about 12 min for 3,000 questions x 2 arms ...".

    Of each benchmark and each way to ask, the second batch of questions with their own pictures is timed, the first
    one being slower than those that follow. Its answers are kept in the cache, and are not asked for again. Nothing is
    said of a short run, of one whose first answers are in the cache already, or of one by several processes.

    Args:
        model: As in `runner.answer_arms`.
        processor: Its processor.
        items: All questions of the run.
        arms: The arms.
        cache: Of the run.
        lengths: Per benchmark the most tokens of a generated answer.
        default_length: Of benchmarks that are not in `lengths`.
        batch_size: Questions at a time.
        engine: Takes the place of model and processor.
    """
    if processes().num_processes > 1:
        return
    parts = [(name, method) for name in dict.fromkeys(item.benchmark for item in items) for method in METHODS]
    asked = {part: [i for i in items if i.benchmark == part[0] and is_askable(i, part[1], "right")] for part in parts}
    asked = {part: members for part, members in asked.items() if members}
    if sum(len(members) for members in asked.values()) < WORTH_IT * batch_size:
        return
    if engine is None:
        engine = engine_of(model, processor, arms)
        names = [identity_of(model, processor, arm.adapter, arm.off) for arm in arms]
    else:
        names = [arm.name for arm in arms]
    voices = [Voice(arm.name, name, partial(active_arm, model, arm)) for arm, name in zip(arms, names, strict=True)]
    total = 0.0
    for (name, method), members in asked.items():
        length = lengths.get(name, default_length)
        asking = Asking(engine, "right", method, length, cache, batch_size, 0, "count", None, voices)
        seconds = _seconds_each(asking, members, cache)
        if seconds is None:
            return
        total += seconds * sum(is_askable(item, method, image) for item in members for image in IMAGE_ARMS)
    Console(stderr=True).print(estimate(total, len(items), len(arms)), highlight=False, soft_wrap=True)


def estimate(seconds: float, questions: int, arms: int) -> str:
    """The line that is printed."""
    of_arms = f" x {arms} arms" if arms > 1 else ""
    return f"about {_rounded(seconds)} for {questions:,} questions{of_arms}, under every picture and way of asking"


def _seconds_each(asking: Asking, items: Sequence[Item], cache: AnswerCache) -> float | None:
    """Wall-clock seconds of one question to all voices; None where that cannot be told."""
    seconds = 0.0
    # Whole batches, so that they are the same ones when everything is asked, with the same answers to the last bit.
    for batch in batches_of(items, asking.batch_size)[:2]:
        known, started = len(cache), time.perf_counter()
        try:
            asking([items[index] for index in sorted(batch)])
        except AnswerErrors:
            return None  # which is met again, and reported, when everything is asked
        if len(cache) == known:
            return None
        seconds = (time.perf_counter() - started) / len(batch)
    return seconds


def _rounded(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute or less"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
