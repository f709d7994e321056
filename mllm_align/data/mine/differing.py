"""Whether one answer says something else than another: the filters on rejected responses, without a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mllm_align.data.mine.words import content, numbers, polarity, words

# In the order in which they are asked; a row counts for the first one that it fails.
FILTERS = (
    "empty",
    "refusal",
    "repetition",
    "unfinished",
    "equal",
    "polarity",
    "numbers",
    "same content",
    "nothing new",
    "overlap",
    "length",
)
_REFUSAL = re.compile(
    r"\b(?:sorry|as an ai|(?:can(?:no|')t|can not|could ?n[o']t|unable to|not able to|do ?n[o']t|does ?n[o']t) "
    r"(?:\w+ )?(?:see|view|access|determine|tell|answer|describe|identify|provide|know|have access|have enough)|"
    r"(?:no|any|the) (?:image|picture|photo)\w* (?:is |was |has been |were |been )?(?:not )?"
    r"(?:provided|attached|available|given|uploaded|shared|visible)|"
    r"(?:please|could you) (?:provide|upload|share|attach)|"
    r"without (?:the|an|any|seeing)(?: \w+)? (?:image|picture|photo))",
    re.IGNORECASE,
)
_ENDS = (".", "!", "?", '"', "'", ")", "\u201d", "\u2019")
_REPEATED = re.compile(r"\b((?:\S+\s+){1,12})\1{2,}", re.IGNORECASE)
LONG_ENOUGH_TO_END = 9


@dataclass(frozen=True)
class Differing:
    """What a rejected answer must be to count as one that differs from chosen in content.

    A closed answer is wrong if it says something else; of a longer one some word of content must be new, for that is
    what may be wrong in it. What is in the question is not new, unless it offers a choice ("or").

    Args:
        closed_words: Most words of a closed answer.
        min_new: Words of content in rejected that chosen does not have, for longer answers.
        max_overlap: Largest share of words of content that both have of those that one has (Jaccard).
        length_ratio: Least and greatest number of words in rejected for each one in chosen; of closed answers nothing
            is asked.
    """

    closed_words: int = 4
    min_new: int = 1
    max_overlap: float = 1.0
    length_ratio: tuple[float, float] = (0.33, 3.0)

    def __post_init__(self) -> None:
        low, high = self.length_ratio
        if not 0 <= low <= high:
            raise ValueError(f"length_ratio is two numbers, the lower one first, not {self.length_ratio}")
        if not 0 <= self.max_overlap <= 1:
            raise ValueError(f"max_overlap must be between 0 and 1, not {self.max_overlap}")
        if self.min_new < 1 or self.closed_words < 0:
            raise ValueError("min_new must be at least 1 and closed_words at least 0")

    def failed(self, prompt: str, chosen: str, rejected: str) -> str | None:
        """The first of `FILTERS` that rejected fails, or None."""
        return self._degenerate(chosen, rejected) or self._agreeing(prompt, chosen, rejected)

    def unchanged(self, prompt: str, chosen: str, completed: str) -> str | None:
        """As `failed`, for an answer of which some words were replaced: there any other word is another statement."""
        closed = len(words(chosen)) <= self.closed_words
        if closed or polarity(chosen) is not None or polarity(completed) is not None:
            return self._agreeing(prompt, chosen, completed)
        return "same content" if content(chosen) == content(completed) else None

    def _degenerate(self, chosen: str, rejected: str) -> str | None:
        said = words(rejected)
        if not said:
            return "empty"
        if _REFUSAL.search(rejected.replace("\u2019", "'")):
            return "refusal"
        if _REPEATED.search(" ".join(said) + " "):
            return "repetition"
        ended = chosen.rstrip().endswith(_ENDS[:3]) and not rejected.rstrip().endswith(_ENDS)
        return "unfinished" if ended and len(said) >= LONG_ENOUGH_TO_END else None

    def _agreeing(self, prompt: str, chosen: str, rejected: str) -> str | None:
        own, other = content(chosen), content(rejected)
        if normalised(chosen) == normalised(rejected):
            return "equal"
        sides = {polarity(chosen), polarity(rejected)}
        if sides != {None}:
            return None if sides == {"yes", "no"} else "polarity"
        size = len(words(chosen))
        closed = size <= self.closed_words
        counted = numbers(chosen)
        if closed and counted and counted >= set(own):
            return None if numbers(rejected) and not counted & numbers(rejected) else "numbers"
        if set(own) == set(other) or (closed and set(own) <= set(other)):
            return "same content"
        offered = set() if re.search(r"\bor\b", prompt, re.IGNORECASE) else set(content(prompt))
        new = set(other) - set(own) - offered
        if len(new) < (1 if closed else self.min_new):
            return "nothing new"
        if not closed and len(set(own) & set(other)) / len(set(own) | set(other)) > self.max_overlap:
            return "overlap"
        low, high = self.length_ratio
        return None if closed or low <= len(words(rejected)) / size <= high else "length"


def normalised(text: str) -> str:
    """A text without case, punctuation, articles and the spelling of numbers: what short answers are compared by."""
    plain = (word.casefold().replace("\u2019", "'") for word in words(text))
    return " ".join(" ".join(numbers(word)) or word for word in plain if word not in ("a", "an", "the"))
