"""Items to answers: batched, cached, resumable, under the right, another, or no picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm_align_eval.arm_check import check_arms_differ
from mllm_align_eval.arm_engine import engine_of
from mllm_align_eval.arms import Arm, active_arm, identity_of
from mllm_align_eval.asking import AnswerErrors, Asking, Voice
from mllm_align_eval.benchmark import Reading
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.engine import Engine, ModelEngine
from mllm_align_eval.items import IMAGE_ARMS, METHODS, Answer, ImageArm, Item, Method, check_items
from mllm_align_eval.matrices import ANCHOR, NUM_SCORES, TEMPLATES
from mllm_align_eval.mismatch import lacks_other_images

__all__ = ["AnswerErrors", "Answers", "answer", "answer_arms", "progress_bar"]

logger = logging.getLogger(__name__)
Answers = dict[tuple[Method, ImageArm], list[Answer]]


def answer(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    image: ImageArm = "right",
    method: Method = "generate",
    batch_size: int = 32,
    cache: AnswerCache | None = None,
    identity: str | None = None,
    max_new_tokens: int = 16,
    seed: int = 0,
    on_error: str = "raise",
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> list[Answer]:
    """One answer per item, in the order of the items.

    Args:
        model: The model with the arm's adapters active (`active_arm`).
        processor: Its processor.
        items: The questions.
        image: "right", "other" (see `mismatch.other_images`) or "none" (the prompt without any picture).
        method: "logprob": the choice with the highest log-probability as the whole answer, its end included;
            "generate": the greedy text, parsed.
        batch_size: Items at a time; items of similar length share a batch.
        cache: Answers found there are not asked for again.
        identity: What tells this model apart in the cache; by default `identity_of` it with the active adapter.
        max_new_tokens: Of a generated answer.
        seed: Of the choice of other pictures.
        on_error: "raise" an `AnswerErrors` after all items were tried, or "count": return them with state error.
        progress: A rich progress display to add a bar to.
        engine: Takes the place of model and processor.

    Raises:
        AnswerErrors: If items failed and `on_error` is "raise", or the model failed on more than 20.
        ValueError: If an argument is none of its values, or items are unusable.
    """
    _check(items, image, method, on_error, batch_size)
    name = identity if identity is not None else _identity(model, processor)
    asking = Asking(
        engine=engine or ModelEngine(model, processor),
        image=image,
        method=method,
        max_new_tokens=max_new_tokens,
        cache=cache,
        batch_size=batch_size,
        seed=seed,
        on_error=on_error,
        progress=progress,
        voices=(Voice("", name, nullcontext),),
    )
    return asking(items)[""]


def answer_arms(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    arms: Sequence[Arm],
    *,
    images: Sequence[ImageArm] = IMAGE_ARMS,
    methods: Sequence[Method] = METHODS,
    batch_size: int = 32,
    cache: AnswerCache | None = None,
    max_new_tokens: int = 16,
    seed: int = 0,
    on_error: str = "raise",
    show_progress: bool = True,
    wanted: Callable[[Item, Method, ImageArm], bool] | None = None,
    readings: Mapping[str, Reading] | None = None,
) -> dict[str, Answers]:
    """The answers of every arm on one loaded model: `answers[arm][method, image]`.

    Each batch is put to all arms one after the other, so that they see the very same tokens and pixels.

    Args:
        model: A PEFT model with the arms' adapters loaded, or a plain model for a base alone.
        processor: Its processor.
        items: The questions, the same for all arms.
        arms: The arms.
        images: Picture arms.
        methods: Scoring methods.
        batch_size: As in `answer`.
        cache: As in `answer`.
        max_new_tokens: As in `answer`.
        seed: As in `answer`.
        on_error: As in `answer`; "raise" does when everything was asked, of all arms, methods and picture arms.
        show_progress: Whether to show bars with the time that remains.
        wanted: (item, method, image) to whether it is asked; by default everything that makes sense is (`is_askable`).
        readings: By benchmark how a generated text becomes a choice, where that is not `answers.parse`.

    Raises:
        AnswerErrors: As in `answer`.
        ValueError: If an adapter gives the base's log-probabilities everywhere, as one that was not loaded does
            (`check_arms_differ`); or an argument is none of its values.
    """
    engine = engine_of(model, processor, arms)
    names = [identity_of(model, processor, arm.adapter, arm.off) for arm in arms]
    voices = [Voice(arm.name, name, partial(active_arm, model, arm)) for arm, name in zip(arms, names, strict=True)]
    answers: dict[str, Answers] = {arm.name: {} for arm in arms}
    failed: list[Answer] = []
    total = 0
    with progress_bar(disable=not show_progress) as progress:
        for method in methods:
            for image in images:
                asked = [item for item in items if is_askable(item, method, image)]
                asked = [item for item in asked if wanted is None or wanted(item, method, image)]
                if not asked:
                    continue
                _check(asked, image, method, on_error, batch_size)
                if image == "other" and (reason := lacks_other_images(asked)):
                    logger.warning("%s: not asked under another image", reason)
                    continue
                asking = Asking(
                    engine,
                    image,
                    method,
                    max_new_tokens,
                    cache,
                    batch_size,
                    seed,
                    "count",
                    progress,
                    voices,
                    readings or {},
                )
                for name, given in asking(asked).items():
                    answers[name][method, image] = given
                    failed += [answer for answer in given if answer.state == "error"]
                    total += len(given)
    check_arms_differ(model, engine, items, arms, answers)
    if failed and on_error == "raise":
        raise AnswerErrors(failed, total)
    return answers


def is_askable(item: Item, method: Method, image: ImageArm) -> bool:
    """Whether an item can be asked so: only closed ones have choices to score, only some have a picture to change.

    Open ones are asked with their own and with another picture: what is written about none is no answer. Captions are
    scored and not generated; queries for one of all candidates, classes, and texts that are compared with a text are
    put to no model that writes.
    """
    if ANCHOR in item.truth or TEMPLATES in item.truth:
        return False
    if not item.is_closed if method == "logprob" else NUM_SCORES in item.truth:
        return False
    if image == "right":
        return True
    return bool(item.pictures) and (item.is_closed or image == "other")


def progress_bar(disable: bool = False) -> Progress:
    """Bars with count, elapsed and remaining time, on standard error: what reads the table may stop early."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=disable, transient=True)


def _identity(model: Any, processor: Any) -> str:
    active = getattr(model, "active_adapter", None)
    return identity_of(model, processor, active if isinstance(active, str) else None)


def _check(items: Sequence[Item], image: str, method: str, on_error: str, batch_size: int) -> None:
    check_items(items)
    known = (("image", image, IMAGE_ARMS), ("method", method, METHODS), ("on_error", on_error, ("raise", "count")))
    for name, value, allowed in known:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if method == "logprob" and (short := next((item.id for item in items if len(item.choices) < 2), None)):
        raise ValueError(f"item {short!r} has fewer than two choices: log-prob scoring needs closed answers")
