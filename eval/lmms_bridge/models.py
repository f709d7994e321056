"""The two classes behind lmms-eval's `--model mllm_align`: its chat interface, and its simple one.

An image that cannot be read, a prompt that cannot be rendered or a video stops the run with the task and the number of
the document: an empty answer in its place would be scored as a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from rich.progress import Progress

from mllm_align_eval.asking import FAILURES, batches_of
from mllm_align_eval.engine import Request
from mllm_align_eval.items import Item
from mllm_align_eval.lmms_bridge.decoding import Decoding
from mllm_align_eval.lmms_bridge.decoding_engine import DecodingEngine
from mllm_align_eval.lmms_bridge.loading import load
from mllm_align_eval.lmms_bridge.prompts import of_messages, of_visuals

# Without the extra the module still imports; lmms-eval alone makes objects of these classes.
Base: Any = import_module("lmms_eval.api.model").lmms if find_spec("lmms_eval") else object
Kept: Any = import_module("lmms_eval.api.instance").GenerationResult if find_spec("lmms_eval") else SimpleNamespace

Result = TypeVar("Result")


@dataclass(frozen=True)
class Waiting:
    """One question of a document: its text tells how long it is, and the images are loaded when it is its turn."""

    task: str
    split: str
    document: int
    text: str
    load: Callable[[], Request]

    @property
    def name(self) -> str:
        """How errors speak of it."""
        return f"{self.task}, split {self.split!r}, document {self.document}"


class ChatModel(Base):
    """A model for lmms-eval, answered by the package's own engine: batched, an image encoded once.

    Several processes (`accelerate launch -m lmms_eval ...`) hold a copy each and answer the documents that lmms-eval
    gives them.

    Args:
        pretrained: Hub id, folder, "demo-base", or the folder of a run that holds an adapter.
        adapter: Folder or Hub id of an adapter; left out for the base.
        batch_size: Questions at a time.
        device: Where to; this process's own GPU where there is one, else the CPU.
        max_batch_size: Not used: the batch size is given.
        **arguments: `dtype`, `load_in_4bit` and the others in `loading.LOADING`; `encoders`, see `loading.load`.

    Raises:
        ValueError: If an argument is unknown, the batch size no positive integer, or the model cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a positive integer, not {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.task_dict: dict[str, Any] = {}
        self.engine = DecodingEngine(*load(pretrained, adapter, device, arguments))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.engine.model.parameters()).device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            ValueError: Naming task and document, where one shows something else than images, or cannot be rendered.
        """
        asked = [self._waiting(request) for request in requests]
        settings = [Decoding.of(self._decoding(request)) for request in requests]
        found: dict[int, str] = {}
        for decoding in dict.fromkeys(settings):
            members = [index for index, own in enumerate(settings) if own == decoding]
            texts = self._by_batch([asked[m] for m in members], partial(self.engine.answer, decoding=decoding))
            found |= zip(members, texts, strict=True)
        return [found[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Not by this interface; see `SimpleModel`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("lmms-eval scores choices by its simple interface: add --force_simple")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Tasks that ask again after an answer are not run.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("mllm_align answers each document once: tasks of several rounds are not supported")

    def clean(self) -> None:
        """Lets go of the model when lmms-eval has its answers, so that a judge may take its place in memory."""
        del self.engine
        super().clean()

    def _document(self, task: str, split: str, document: int) -> Any:
        return self.task_dict[task][split][document]

    def _decoding(self, request: Any) -> Any:
        return request.args[2]

    def _waiting(self, request: Any) -> Waiting:
        context, messages_of, _, document, task, split = request.args

        def read() -> Request:
            return of_messages(messages_of(self._document(task, split, document)))

        return Waiting(task, split, document, context if isinstance(context, str) else "", read)

    def _by_batch(self, asked: Sequence[Waiting], ask: Callable[[list[Request]], list[Result]]) -> list[Result]:
        """What `ask` says of each, in their order; prompts of like length and neighbouring documents together."""
        items = [
            Item(str(n), one.task, one.split, "", f"{one.task} {one.split} {one.document:>12}", one.text, ())
            for n, one in enumerate(asked)
        ]
        found: dict[int, Result] = {}
        with Progress(disable=self._rank != 0) as progress:
            bar = progress.add_task("mllm_align", total=len(asked))
            for members in batches_of(items, self.batch_size):
                for indices, requests in _alike(members, [_loaded(asked[index]) for index in members]):
                    answers = _asked([asked[index] for index in indices], requests, ask)
                    found |= zip(indices, answers, strict=True)
                progress.advance(bar, len(members))
        return [found[index] for index in range(len(asked))]


class SimpleModel(ChatModel):
    """The same by lmms-eval's simple interface: all images in front of the text, and choices by their losses."""

    is_simple = True

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The mean loss of each continuation, and whether it is the greedy answer, in the order of the requests.

        They are the `text` of results, because lmms-eval 0.7.3 turns a bare pair into a string, which none of its
        tasks can read. Its `--use_cache` cannot keep them.

        A document's choices are scored together, behind one pass over its image and question. The white space that a
        task puts in front of a choice is left to the chat template.

        Raises:
            ValueError: Naming task and document, as `generate_until`; or where a choice is to be scored without a
                question, for `acc_mutual_info`.
        """
        choices: dict[tuple[Any, ...], list[str]] = {}
        first: dict[tuple[Any, ...], Any] = {}
        places = []
        for request in requests:
            if len(request.args) == 2:
                raise ValueError("acc_mutual_info needs choices scored without a question, which is not supported")
            context, target, _, document, task, split = request.args
            choice = (target if isinstance(target, str) else target(self._document(task, split, document))).strip()
            key = (task, split, document, context)
            known = choices.setdefault(key, [])
            first.setdefault(key, request)
            if choice not in known:
                known.append(choice)
            places.append((key, choice))
        asked = [self._waiting(request, tuple(choices[key])) for key, request in first.items()]
        losses = dict(zip(first, self._by_batch(asked, self.engine.choice_losses), strict=True))
        return [Kept(text=losses[key][choices[key].index(choice)]) for key, choice in places]

    def _decoding(self, request: Any) -> Any:
        return request.args[1]

    def _waiting(self, request: Any, choices: tuple[str, ...] = ()) -> Waiting:
        context, _, visuals_of, document, task, split = request.args

        def read() -> Request:
            return of_visuals(visuals_of(self._document(task, split, document)), context, choices)

        return Waiting(task, split, document, context, read)


def _loaded(one: Waiting) -> Request:
    try:
        return one.load()
    except (ValueError, OSError) as error:
        raise ValueError(f"{one.name}: {error}") from error


def _alike(indices: Sequence[int], requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Request]]]:
    """Those that show something and those that do not, which the engine takes apart."""
    for shown in (True, False):
        some = [(i, request) for i, request in zip(indices, requests, strict=True) if bool(request.images) == shown]
        if some:
            yield [index for index, _ in some], [request for _, request in some]


def _asked(
    asked: Sequence[Waiting], requests: list[Request], ask: Callable[[list[Request]], list[Result]]
) -> list[Result]:
    """A batch's answers; where it fails, one by one, which takes less memory, and tells which of them it is."""
    try:
        return ask(requests)
    except FAILURES as error:
        if len(requests) == 1:
            raise ValueError(f"{asked[0].name}: {error}") from error
    return [_asked([one], [request], ask)[0] for one, request in zip(asked, requests, strict=True)]
