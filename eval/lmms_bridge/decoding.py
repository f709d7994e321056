"""What lmms-eval's tasks say about generation, as settings that requests of one batch share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 1024  # new tokens where a task names no limit, as lmms-eval's own models have it
# lmms-eval adds this stop to every task that names none, and its own models drop it: it would cut an answer of several
# paragraphs after the first.
PARAGRAPH = "\n\n"
SAMPLING = ("temperature", "top_p", "top_k")
SETTINGS = ("num_beams", "repetition_penalty", "length_penalty")
_READ = {*SAMPLING, *SETTINGS, "do_sample", "until", "max_new_tokens", "max_gen_toks"}
_reported: set[str] = set()


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated.

    Attributes:
        max_new_tokens: Its length at the most.
        until: Texts that end it; they are not part of it.
        settings: Further keyword arguments of `generate`, sorted by name; none for greedy search.
    """

    max_new_tokens: int = DEFAULT_LENGTH
    until: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Decoding:
        """Reads the `generation_kwargs` of a task.

        Greedy unless `do_sample` is true or, where that is not said, the temperature is above 0; a temperature of 0
        is greedy in any case. None is as good as absent. Settings that are not known here (`image_aspect_ratio`, which
        is for LLaVA's first code) are left out, with one warning each.

        Raises:
            ValueError: If the length is no positive integer, or `until` neither a text nor a list of texts.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        for name in given.keys() - _READ - _reported:
            _reported.add(name)
            logger.warning("generation setting %s=%r is not known here and left out", name, given[name])
        temperature = given.get("temperature")
        samples = given.get("do_sample", temperature is not None) and temperature != 0
        found = {name: given[name] for name in SETTINGS if name in given}
        if samples:
            found |= {"do_sample": True, **{name: given[name] for name in SAMPLING if name in given}}
        if found.get("num_beams") == 1:
            del found["num_beams"]
        if found.get("num_beams") is None:
            found.pop("length_penalty", None)  # of beams alone
        return cls(_length(given), _stops(given.get("until", ())), tuple(sorted(found.items())))

    def cut(self, text: str) -> str:
        """The text up to the first of the stops."""
        places = [place for stop in self.until if (place := text.find(stop)) >= 0]
        return text[: min(places)].rstrip() if places else text


def _length(given: Mapping[str, Any]) -> int:
    length = given.get("max_new_tokens", given.get("max_gen_toks", DEFAULT_LENGTH))
    if isinstance(length, bool) or int(length) != length or length < 1:
        raise ValueError(f"max_new_tokens must be a positive integer, not {length!r}")
    return int(length)


def _stops(until: Any) -> tuple[str, ...]:
    stops = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"until must be a text or a list of texts, not {until!r}")
    return tuple(stop for stop in stops if stop and stop != PARAGRAPH)
