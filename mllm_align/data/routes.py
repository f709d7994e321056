"""Where the captions of a row go, by their length; see `mllm_align.data.routing`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from mllm_align.data.errors import DataError
from mllm_align.data.messages import read_response
from mllm_align.data.schema import UNREADABLE, missing_column

# Columns that may hold captions.
TEXTS = ("captions", "caption", "chosen")


@dataclass(frozen=True)
class Routes:
    """Which way captions go.

    Args:
        short: Tokens from which a caption is no longer contrasted.
        long: Tokens up to which one is trained on; longer ones are left out, for a text that is cut would teach to
            stop in the middle of a sentence. None for no limit.
        prompt: Instruction that stands behind the image. In a recipe, that of the objective by default.
        redraw: Whether a row with several captions of one kind has another of them in every epoch, each once before
            any comes twice; if not, it keeps the one of the first epoch.
        seed: Of the run.
    """

    short: int = 30
    long: int | None = 500
    prompt: str | None = None
    redraw: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses limits that make no sense."""
        if type(self.short) is not int or self.short < 1:
            raise DataError(f"short must be a whole number of tokens above 0, not {self.short!r}")
        if self.long is not None and (type(self.long) is not int or self.long < self.short):
            raise DataError(f"long must be a whole number of tokens from short ({self.short}) on, not {self.long!r}")
        if self.prompt is not None and (not isinstance(self.prompt, str) or not self.prompt.strip()):
            raise DataError(f"prompt must be the instruction behind the image, not {self.prompt!r}")
        if not isinstance(self.redraw, bool):
            raise DataError(f"redraw must be true or false, not {self.redraw!r}")

    def is_short(self, tokens: int) -> bool:
        """Whether a caption of so many tokens is contrasted."""
        return tokens < self.short

    def is_long(self, tokens: int) -> bool:
        """Whether a caption of so many tokens is trained on."""
        return tokens >= self.short and (self.long is None or tokens <= self.long)


class Routed(NamedTuple):
    """How many rows went which way.

    Attributes:
        short: Rows with short captions alone.
        long: Rows with long ones alone.
        both: Rows with both.
        left_out: Rows with neither.
        too_long: Captions above the limit, also of rows that have others.
    """

    short: int
    long: int
    both: int
    left_out: int
    too_long: int

    def __str__(self) -> str:
        return (
            f"{self.short + self.long + self.both:,} rows of captions: {self.short:,} short, {self.long:,} long, "
            f"{self.both:,} both; {self.left_out:,} rows left out, {self.too_long:,} captions too long"
        )


def routes_from(options: Mapping[str, Any]) -> Routes:
    """What a recipe says: `short`, `long`, `prompt` and `redraw`.

    Raises:
        DataError: If an option is unknown (the nearest is named), or a value makes no sense.
    """
    known = [field.name for field in fields(Routes) if field.name != "seed"]
    for name in options:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"routing captions has no option {name!r}; it has {', '.join(known)}{hint}")
    return Routes(**options)


def captions_of(raw: Mapping[str, Any], where: str) -> list[str]:
    """The captions of a row, each once.

    Raises:
        DataError: If there is none, one is empty or no text, or they are the answers of a conversation.
    """
    if raw.get(UNREADABLE):
        raise DataError(f"{where}: {raw[UNREADABLE]}")
    prompt = raw.get("prompt")
    turns = prompt if isinstance(prompt, list | tuple) else ()
    if any(isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in turns):
        raise DataError(f"{where}: 'prompt' is a conversation, whose answer is no caption: leave the row out")
    texts: list[str] = []
    for column in TEXTS:
        value = raw.get(column)
        if value is None:
            continue
        listed = list(value) if column != "chosen" and isinstance(value, list | tuple) else [value]
        texts += [read_response(each, column, where) for each in listed]
    if not texts:
        raise missing_column("caption", filled(raw), where, f"; captions are in one of {', '.join(TEXTS)}")
    return list(dict.fromkeys(text.strip() for text in texts))


def seeded(routes: Routes, seed: int, *, once: bool) -> Routes:
    """The draws of a run, for all its epochs where `once` is set."""
    return replace(routes, seed=seed, redraw=routes.redraw and not once)


def filled(raw: Mapping[str, Any]) -> list[str]:
    """Names of the columns that hold something."""
    return [name for name, value in raw.items() if value is not None]
