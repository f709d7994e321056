"""What is asked and what came back: the two records that everything in the evaluation speaks in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from PIL import Image

ImageArm = Literal["right", "other", "blank", "none"]
Method = Literal["logprob", "generate", "similarity"]
State = Literal["answered", "abstained", "invalid", "error"]
IMAGE_ARMS: tuple[ImageArm, ...] = ("right", "other", "blank", "none")
METHODS: tuple[Method, ...] = ("logprob", "generate")  # of a model that writes; an encoder has similarities alone
YES_NO = ("yes", "no")


class Picture(NamedTuple):
    """A picture by the name that its benchmark gives it; `load` returns it, and is called when it is needed."""

    name: str
    load: Callable[[], Image.Image]


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: Unique within a run.
        benchmark: Where it comes from, for example "world" or "pope".
        split: The test it belongs to: "in_distribution", "adversarial", "pairs", "random", ...
        kind: What is asked for: existence, colour, size, side, count, relation, ...
        cluster: The scene or picture: the unit of resampling.
        prompt: The question's text.
        pictures: What is shown with it, in order; none for questions about no picture.
        choices: The possible answers of a closed question; for yes/no questions exactly ("yes", "no"). Empty for an
            open one.
        answer: The true choice; "" for an open question.
        pair: Name of the pair whose two questions must both be right, or None.
        prior_answer: What language alone would say, or None.
        labels: Per choice the wording that the prompt gives it, where choices are letters; empty otherwise.
        truth: What the benchmark's own scorer needs beside the answer (objects, reference answers, groups).
    """

    id: str
    benchmark: str
    split: str
    kind: str
    cluster: str
    prompt: str
    pictures: tuple[Picture, ...]
    choices: tuple[str, ...] = ()
    answer: str = ""
    pair: str | None = None
    prior_answer: str | None = None
    labels: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.choices and self.answer not in self.choices:
            raise ValueError(f"item {self.id!r}: the answer {self.answer!r} is none of its choices {self.choices}")
        if not self.choices and self.answer:
            raise ValueError(f"item {self.id!r}: an answer {self.answer!r} without choices; put it in truth")
        if self.labels and len(self.labels) != len(self.choices):
            raise ValueError(f"item {self.id!r}: {len(self.labels)} labels for {len(self.choices)} choices")

    @property
    def is_closed(self) -> bool:
        """Whether the answer is one of several choices."""
        return bool(self.choices)

    @property
    def is_yes_no(self) -> bool:
        """Whether the answer is yes or no."""
        return set(self.choices) == set(YES_NO)


@dataclass(frozen=True)
class Answer:
    """What one model said to one item under one image, by one method.

    Attributes:
        item: `Item.id`.
        text: The generated text, or the most probable choice.
        choice: The choice that the text was read as; None where it is none of them or more than one.
        right: Whether `choice` is the item's answer; an unreadable answer is wrong. False for open questions, which
            their benchmark's own scorer judges.
        scores: Per choice the log-probability of it as the whole answer, end of turn included, or another score of it,
            as a similarity; empty if generated.
        state: "answered", "abstained" ("I cannot tell"), "invalid" (unreadable), or "error" (the model failed).
        truncated: Whether generation stopped at its limit.
        error: What failed, where `state` is "error".
        picture: The name of the picture that could not be read, where that is what failed.
    """

    item: str
    text: str
    choice: str | None
    right: bool
    scores: Sequence[float] = ()
    state: State = "answered"
    truncated: bool = False
    error: str = ""
    picture: str = ""


def check_items(items: Sequence[Item]) -> None:
    """Raise ValueError where there is no item or two share an id."""
    if not items:
        raise ValueError("there are no items to answer")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"two items have the id {item.id!r}; ids must be unique within a run")
        seen.add(item.id)
