"""One question set under one picture arm and method, put to one or several models that share an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import gather_object
from PIL import Image
from rich.progress import Progress

from mllm_align.data.processes import processes
from mllm_align_eval.answers import parse, scored
from mllm_align_eval.benchmark import Reading
from mllm_align_eval.cache import AnswerCache, content_key, image_digest
from mllm_align_eval.engine import Engine, Request
from mllm_align_eval.items import Answer, ImageArm, Item, Method
from mllm_align_eval.mismatch import other_images

MAX_ERRORS = 20
MAX_NAMED = 5  # pictures in one message
LIKE_LENGTH = 32  # characters by which the prompts of a batch may differ at no matter
GREY = (127, 127, 127)
SHOWN = {"right": "right image", "other": "another image", "blank": "blank image", "none": "no image"}
# What a model, a processor or a picture may fail with; anything else is a defect of ours and is not caught.
FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, OSError)
BROKEN_PICTURE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # Pillow's, of PNG chunks the third


class AnswerErrors(RuntimeError):
    """Some items could not be answered; the other answers are in the cache, if there is one.

    Attributes:
        failed: What is kept of them.
        total: How many answers were wanted, or until then, where it was given up.
        gave_up: Whether the model failed so often that the rest was not asked.
    """

    def __init__(self, failed: Sequence[Answer], total: int, gave_up: bool = False, advice: str = "") -> None:
        causes = [*_unreadable(failed), *_failures(failed)]
        text = f"{len(failed)} of {total} items could not be answered; {'; '.join(causes)}"
        super().__init__(f"{text}. {advice}" if advice else text)
        self.failed, self.total, self.gave_up = tuple(failed), total, gave_up


def _unreadable(failed: Sequence[Answer]) -> list[str]:
    """The pictures that cannot be read, each once."""
    causes = {answer.picture: answer.error for answer in failed if answer.picture}
    # The name that annotations give it is a part of its path, where the error names that.
    named = [error if name in error else f"{name}: {error}" for name, error in causes.items()]
    if not named:
        return []
    more = f"; and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    noun = "1 picture" if len(named) == 1 else f"{len(named)} pictures"
    return [f"{noun} cannot be read ({'; '.join(named[:MAX_NAMED])}{more})"]


def _failures(failed: Sequence[Answer]) -> list[str]:
    """The first thing that the model itself failed with."""
    return [f"the first, {answer.item!r}: {answer.error}" for answer in failed if not answer.picture][:1]


@dataclass(frozen=True)
class Voice:
    """Who answers: `identity` tells it apart in the cache, `speaking` switches the model to it."""

    name: str
    identity: str
    speaking: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Question:
    """One item with its pictures loaded, or which one of them cannot be and why."""

    index: int
    item: Item
    request: Request | None
    error: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Asking:
    """Settings that all batches share; see `runner.answer`."""

    engine: Engine
    image: ImageArm
    method: Method
    max_new_tokens: int
    cache: AnswerCache | None
    batch_size: int
    seed: int
    on_error: str
    progress: Progress | None
    voices: Sequence[Voice] = field(default_factory=tuple)
    readings: Mapping[str, Reading] = field(default_factory=dict)

    def __call__(self, items: Sequence[Item]) -> dict[str, list[Answer]]:
        """Per voice the answers in the order of the items.

        A batch is loaded and tokenised once and put to each voice in turn. With several processes each asks its share
        of the batches, and all get all answers.

        Raises:
            AnswerErrors: If items failed and `on_error` is "raise", or the model failed on more than 20.
        """
        sources = [items[index] for index in other_images(items, self.seed)] if self.image == "other" else items
        state = processes()
        batches = batches_of(items, self.batch_size)[state.process_index :: state.num_processes]
        found: dict[str, dict[int, Answer]] = {voice.name: {} for voice in self.voices}
        task = self._new_bar(sum(map(len, batches)))
        failed: list[Answer] = []
        for indices in batches:
            batch = [self._load(index, items[index], sources[index]) for index in indices]
            for voice in self.voices:
                done = self._batch(voice, batch)
                found[voice.name] |= done
                failed += [answer for answer in done.values() if answer.state == "error"]
            # A broken picture says nothing of the next one, and costs no time: all of them shall be named.
            if sum(not answer.picture for answer in failed) > MAX_ERRORS:
                raise AnswerErrors(failed, len(items) * len(self.voices), gave_up=True)
            if self.progress and task is not None:
                self.progress.advance(task, len(batch))
        if state.num_processes > 1:
            shares: list[Any] = gather_object([found])
            found = {name: {k: a for share in shares for k, a in share[name].items()} for name in found}
            failed = [answer for given in found.values() for answer in given.values() if answer.state == "error"]
        if failed and self.on_error == "raise":
            raise AnswerErrors(failed, len(items) * len(self.voices))
        return {name: [answers[index] for index in range(len(items))] for name, answers in found.items()}

    def _new_bar(self, total: int) -> Any:
        label = f"{self.method}, {SHOWN[self.image]}"
        return self.progress.add_task(label, total=total) if self.progress else None

    def _load(self, index: int, item: Item, source: Item) -> Question:
        pictures = []
        for picture in () if self.image == "none" else source.pictures:
            try:
                pictures.append(picture.load().convert("RGB"))
            except BROKEN_PICTURE as error:
                return Question(index, item, None, str(error), picture.name)
        if self.image == "blank":
            pictures = [Image.new("RGB", picture.size, GREY) for picture in pictures]
        return Question(index, item, Request(tuple(pictures), item.prompt, item.choices))

    def _batch(self, voice: Voice, batch: Sequence[Question]) -> dict[int, Answer]:
        """Answers by item index: from the cache, from the model, or errors (which are not cached)."""
        done: dict[int, Answer] = {}
        # By key: the same question under the same picture, or under none, is asked once.
        waiting: dict[str, list[tuple[Question, Request]]] = {}
        for question in batch:
            if question.request is None:
                done[question.index] = _failure(question.item, question.error, question.picture)
                continue
            key = self._key(voice, question.request)
            known = self.cache.get(key) if self.cache is not None else None
            if known is not None:
                done[question.index] = self._finish(question.item, known)
            else:
                waiting.setdefault(key, []).append((question, question.request))
        if waiting:
            with voice.speaking():
                fresh = self._ask([(same[0][0].item, same[0][1]) for same in waiting.values()])
            answered = list(zip(waiting, fresh, strict=True))
            kept = [(key, answer) for key, answer in answered if answer.state != "error"]
            if self.cache is not None and kept:
                self.cache.add(kept)
            done |= {
                question.index: self._finish(question.item, a) for key, a in answered for question, _ in waiting[key]
            }
        return done

    def _ask(self, asked: Sequence[tuple[Item, Request]]) -> list[Answer]:
        """Asks a batch; where it fails, its items one by one, so that one bad item does not cost its neighbours."""
        try:
            return self._ask_engine(asked)
        except FAILURES as error:
            if len(asked) == 1:
                return [_failure(asked[0][0], f"{type(error).__name__}: {error}")]
            answers: list[Answer] = []
            for single in asked:
                answers += self._ask([single])
                if sum(answer.state == "error" for answer in answers) > MAX_ERRORS:
                    rest = asked[len(answers) :]
                    return answers + [_failure(item, "not asked, after too many errors") for item, _ in rest]
            return answers

    def _ask_engine(self, asked: Sequence[tuple[Item, Request]]) -> list[Answer]:
        items, requests = [item for item, _ in asked], [request for _, request in asked]
        if self.method == "generate":
            texts = self.engine.generate(requests, self.max_new_tokens)
            raw = [Answer(i.id, text, None, False, truncated=cut) for i, (text, cut) in zip(items, texts, strict=True)]
        else:
            raw = []
            for item, scores in zip(items, self.engine.choice_logps(requests), strict=True):
                raw.append(scored(item, tuple(scores)))
        return [self._finish(item, answer) for item, answer in zip(items, raw, strict=True)]

    def _finish(self, item: Item, answer: Answer) -> Answer:
        """The answer read and marked; one from the cache too, so that another parser needs no new generation."""
        if answer.state == "error":
            return replace(answer, item=item.id)
        if not item.is_closed:
            return replace(answer, item=item.id, state="answered" if answer.text.strip() else "invalid")
        if answer.scores:
            return scored(item, answer.scores)
        said = self.readings.get(item.benchmark, parse)(answer.text, item)
        return replace(answer, item=item.id, choice=said.choice, right=said.choice == item.answer, state=said.state)

    def _key(self, voice: Voice, request: Request) -> str:
        parts: Mapping[str, Any] = {
            "model": voice.identity,
            "method": self.method,
            "max_new_tokens": self.max_new_tokens if self.method == "generate" else 0,
            "prompt": request.prompt,
            "choices": request.choices,
            "images": [image_digest(image) for image in request.images],
        }
        # Only where there is one, so that answers from before there were any keep their keys.
        further = {"system": request.system, "start": request.start}
        return content_key({**parts, **{name: text for name, text in further.items() if text}})


def batches_of(items: Sequence[Item], batch_size: int) -> list[list[int]]:
    """Indices of the items that are asked together.

    Prompts of like length, which wastes least padding; among those, questions about one picture side by side, so that
    it is encoded once. Questions about pictures and about none never share a batch.
    """
    batches = []
    for shown in (True, False):
        members = [index for index, item in enumerate(items) if bool(item.pictures) == shown]
        members.sort(key=lambda i: (len(items[i].prompt) // LIKE_LENGTH, items[i].cluster, len(items[i].prompt), i))
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches


def _failure(item: Item, error: str, picture: str = "") -> Answer:
    return Answer(item.id, "", None, False, state="error", error=error, picture=picture)
