"""Filling in the holes of a masked answer on another image, by a model that sees.

Two ways. "instruct" shows the masked answer and asks for all of it; it needs a model that follows instructions.
"continue" has the answer continued from each hole in turn, which any model can that answers at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mllm_align.data.mine.instructions import answers_to
from mllm_align.data.mine.masking import MASK, Template
from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align.data.mine.words import kind_of, words

Way = Literal["instruct", "continue"]
WAYS: tuple[Way, ...] = ("instruct", "continue")
FURTHER_WORDS = 3  # that a fill may have beyond what stood in the hole
TOKENS_A_WORD = 4

ASK_TO_COMPLETE = (
    f"{{prompt}}\n\nHere is an answer in which some words are replaced by {MASK}. Look at the picture and replace "
    f"every {MASK} by what is right for this picture. Keep all other words exactly as they are, and reply with the "
    "completed answer only.\n\n{masked}"
)
_LEAD = re.compile(r"^\s*(?:(?:the\s+)?(?:completed\s+)?answer\s*:\s*)?", re.IGNORECASE)
_BREAK = re.compile(r"[,;:.!?](?:\s|$)|\n")
_REST_OF_WORD = re.compile("^[^\\W_][\\w'\u2019\\-]*")
_TOKEN = re.compile("[^\\W_]+(?:['\u2019\\-][^\\W_]+)*|[^\\w\\s]")


@dataclass(frozen=True)
class Task:
    """A masked answer, and the question about a picture that it is to answer: images, system and prompt of `ask`."""

    ask: Ask
    template: Template


def complete(tasks: Sequence[Task], speaker: Speaker, way: Way, max_new_tokens: int = 256) -> list[str | None]:
    """The answers filled in; None where a model changed the fixed words, had nothing to say, or cannot be asked.

    Args:
        tasks: Any number.
        speaker: Answers about pictures.
        way: "instruct" or "continue".
        max_new_tokens: Of a completed answer, for "instruct".

    Raises:
        ValueError: If `way` is neither.
    """
    if way == "instruct":
        asks = [
            replace(task.ask, prompt=ASK_TO_COMPLETE.format(prompt=task.ask.prompt, masked=task.template.masked))
            for task in tasks
        ]
        replies = answers_to(asks, speaker, max_new_tokens)
        return [
            read_completion(task.template, reply) if isinstance(reply, str) else None
            for task, reply in zip(tasks, replies, strict=True)
        ]
    if way == "continue":
        return _continued(tasks, speaker)
    raise ValueError(f"answers are completed by {' or '.join(WAYS)}, not {way!r}")


def read_completion(template: Template, reply: str) -> str | None:
    """The answer as a reply completes it, its fixed pieces as they were; None where the reply has others.

    Case and white space do not count, nor do quotation marks around the reply or "Answer:" before it. A hole must
    come back with something said, in few words more than stood in it, and no clause or sentence begun.
    """
    said = _LEAD.sub("", reply.strip()).strip().strip('"`').strip()
    begin = re.match(_spaced(template.pieces[0]), said, re.IGNORECASE)
    if begin is None or MASK in said:
        return None
    place, fills = begin.end(), []
    last = len(template.holes)
    for number, hole in enumerate(template.holes, start=1):
        # From the left, the first place where the fixed words go on: it leaves most to the holes behind.
        pattern = _spaced(template.pieces[number]) + ("$" if number == last else "")
        match = re.compile(pattern, re.IGNORECASE).search(said, place + 1)
        if match is None:
            return None
        fill = said[place : match.start()]
        if number == last and not template.pieces[-1]:
            fill = fill.rstrip(".!")
        breaks = _BREAK.search(fill) is not None and _BREAK.search(hole) is None
        if breaks or not _says_something(fill) or len(words(fill)) > len(words(hole)) + FURTHER_WORDS:
            return None
        fills.append(" ".join(fill.split()))
        place = match.end()
    return template.filled(fills)


def _spaced(piece: str) -> str:
    """A pattern for a fixed piece, any white space for its own."""
    if piece.isspace():
        return r"\s+"
    inner = r"\s+".join(re.escape(part) for part in piece.split())
    return (r"\s+" if piece[:1].isspace() else "") + inner + (r"\s+" if piece[-1:].isspace() else "")


def _continued(tasks: Sequence[Task], speaker: Speaker) -> list[str | None]:
    fills: list[list[str]] = [[] for _ in tasks]
    failed: set[int] = set()
    for hole in range(max((len(task.template.holes) for task in tasks), default=0)):
        open_ones = [n for n, task in enumerate(tasks) if n not in failed and hole < len(task.template.holes)]
        if not open_ones:
            break
        starts = [tasks[number].template.filled(fills[number]).rstrip() for number in open_ones]
        longest = max(len(words(tasks[number].template.holes[hole])) for number in open_ones)
        asks = [replace(tasks[number].ask, start=start) for number, start in zip(open_ones, starts, strict=True)]
        replies = answers_to(asks, speaker, TOKENS_A_WORD * (longest + FURTHER_WORDS))
        for number, start, reply in zip(open_ones, starts, replies, strict=True):
            template = tasks[number].template
            said = reply if isinstance(reply, str) else ""
            fill = segment_of(said, template.holes[hole], template.pieces[hole + 1], inside=bool(start))
            if fill is None:
                failed.add(number)
            else:
                fills[number].append(fill)
    return [None if n in failed else task.template.filled(fills[n]) for n, task in enumerate(tasks)]


def segment_of(reply: str, hole: str, following: str, *, inside: bool) -> str | None:
    """The beginning of a continuation that belongs into a hole; None where there is no word of content.

    It ends before the fixed words behind the hole or punctuation, with a word of the kind that the hole ended with;
    where none is near, after as many words as stood in the hole, or the first word of content behind them.

    Args:
        reply: What follows.
        hole: What stood in the hole.
        following: The fixed piece behind it.
        inside: Whether something stands before the hole. A reply that then begins without white space goes on with
            the last word, which is fixed; that much of it is passed over.
    """
    if inside:
        reply = _REST_OF_WORD.sub("", reply)
    ahead = [word.casefold() for word in words(following)[:1]]
    size, near = len(words(hole)), []
    for match in _TOKEN.finditer(reply):
        is_word = match[0][0].isalnum()
        if near and (not is_word or ([match[0].casefold()] == ahead and _says_something(" ".join(near)))):
            break
        if is_word:
            near.append(match[0])
        if len(near) == size + FURTHER_WORDS:
            break
    kinds = [kind_of(word) for word in near]
    wanted = kind_of(words(hole)[-1])
    for accepted in ((wanted,), ("object", "attribute", "relation")):
        for end in range(max(1, min(size, len(near))), len(near) + 1):
            fill = " ".join(near[:end])
            if kinds[end - 1] in accepted and _says_something(fill):
                return fill
    return None


def _says_something(fill: str) -> bool:
    return any(kind_of(word) is not None for word in words(fill))
