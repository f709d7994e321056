"""What a benchmark is: its questions, how each harness reads an answer to them, and its published metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mllm_align_eval.answers import Parsed, parse
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measures

if TYPE_CHECKING:
    from mllm_align_eval.benchmarks.files import PictureFolder
    from mllm_align_eval.judge import Judge

STRICT, OFFICIAL = "strict", "official"
# strict: four states, nothing guessed. The others give what the benchmark's own script, lmms-eval and VLMEvalKit make
# of the same text, so that a published column can be reproduced; so do the graders of Cambrian-1 and of S-VCO.
PARSERS = (STRICT, OFFICIAL, "lmms-eval", "vlmevalkit", "cambrian", "s-vco")

Reading = Callable[[str, Item], Parsed]


class Read(Protocol):
    """Reads the questions of a benchmark from its annotation files."""

    def __call__(self, folder: Path, pictures: PictureFolder) -> list[Item]:
        """The questions.

        Raises:
            FileNotFoundError: If a file is missing; it says where it comes from.
            ValueError: If a file is not the benchmark's.
        """
        ...


class Score(Protocol):
    """Computes the published metrics of a benchmark."""

    def __call__(self, items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
        """Metrics by key, `<benchmark>/<split>/<metric>` or `<benchmark>/<metric>`.

        Args:
            items: Questions of the benchmark, every one answered.
            answers: By item id, read by `parser`.
            parser: Whose rules hold where metrics differ between harnesses.
        """
        ...


class JudgedScore(Protocol):
    """Computes the metrics for which a judge reads the answers."""

    def __call__(self, items: Sequence[Item], answers: Mapping[str, Answer], parser: str, judge: Judge) -> Measures:
        """Metrics by key; the arguments are those of `Score`, and who judges."""
        ...


class Ties(Protocol):
    """Tells where two scores that decide are level."""

    def __call__(self, items: Sequence[Item], answers: Mapping[str, Answer]) -> Measures:
        """By split the share of units in which they are, as `<benchmark>/<split>/tied`.

        Args:
            items: Questions of the benchmark, every one answered by a row of scores.
            answers: By item id.
        """
        ...


class Chance(Protocol):
    """Tells what metrics come to where scores are drawn."""

    def __call__(self, items: Sequence[Item]) -> Mapping[str, float]:
        """By the metrics' keys, those that were not measured too."""
        ...


@dataclass(frozen=True)
class Hub:
    """A copy of a benchmark, or of a part of it, on the Hub, pictures included.

    Attributes:
        path: Id of the dataset.
        read: Its rows, in order and by number, to questions.
        split: Of the dataset.
        name: Its configuration, if it has several.
    """

    path: str
    read: Callable[[Sequence[Mapping[str, Any]]], list[Item]]
    split: str = "test"
    name: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: Of its folder, its command-line name and the first part of its metrics' keys.
        title: For people, with authors and year.
        origin: Where its annotations come from; "" where its questions and pictures are drawn here.
        image_origin: Where its pictures come from.
        read: Its questions.
        score: Its published metrics.
        readings: Per parser beside "strict" how a text becomes a choice; a parser that is not here has no rule for it.
        primary: Key of the one metric that a model that writes is judged by where several benchmarks are tested
            together.
        max_new_tokens: Of a generated answer.
        hub: The datasets that hold it with its pictures, each a part; none where no copy is known.
        folder: Of its annotations, where it is another one's and not called as it is.
        files: Names of its annotation files, with wildcards, by which a folder is seen to be its own.
        judged: Its metrics with a judge, used in place of `score` where there is one.
        needs_judge: Whether `score` without one says nothing of how good the answers are.
        judged_primary: In place of `primary`, with a judge.
        describes: Whether its open questions ask for descriptions, which two models are also compared by at equal
            lengths: longer ones name more, right and wrong.
        pictures_beside: Whether its pictures lie in its file or beside it, where no folder of them is named.
        ties: Where its questions are answered by rows of scores, how often a tie decides; strictly read, one is wrong.
        chance: What drawn scores give of its own metrics, where that is not one by the number of choices.
    """

    name: str
    title: str
    origin: str
    image_origin: str
    read: Read
    score: Score
    readings: Mapping[str, Reading] = field(default_factory=dict)
    primary: str = ""
    max_new_tokens: int = 16
    hub: tuple[Hub, ...] = ()
    folder: str = ""
    files: tuple[str, ...] = ()
    judged: JudgedScore | None = None
    needs_judge: bool = False
    judged_primary: str = ""
    describes: bool = False
    pictures_beside: bool = False
    ties: Ties | None = None
    chance: Chance | None = None

    @property
    def is_rendered(self) -> bool:
        """Whether it is drawn here, from no files: it has no origin."""
        return not self.origin

    @property
    def parsers(self) -> tuple[str, ...]:
        """Parsers that it has a rule for."""
        return (STRICT, *self.readings)

    @property
    def default_parser(self) -> str:
        """By whose rules answers from elsewhere are scored: its own script's, but strictly where ties can be."""
        return OFFICIAL if OFFICIAL in self.readings and self.ties is None else STRICT

    def reading(self, parser: str) -> Reading:
        """How a parser reads an answer.

        Raises:
            ValueError: If there is no such parser, or it has no rule for this benchmark.
        """
        if parser not in self.parsers:
            known = "is no parser" if parser not in PARSERS else f"has no rule for {self.name}"
            raise ValueError(f"parser {parser!r} {known}; use {', '.join(self.parsers)}")
        return parse if parser == STRICT else self.readings[parser]

    def judged_by(self, judge: Judge) -> Benchmark:
        """This benchmark with the metrics for which a judge reads the answers; itself where it has none."""
        if self.judged is None:
            return self
        score = partial(_judged, self.judged, judge)
        return replace(self, score=score, primary=self.judged_primary, judged=None, needs_judge=False)

    def answer(self, item: Item, text: str, parser: str) -> Answer:
        """What a text says to an item, by a parser's rule; open questions are not read but for emptiness."""
        if not item.is_closed:
            return Answer(item.id, text, None, False, state="answered" if text.strip() else "invalid")
        said = self.reading(parser)(text, item)
        return Answer(item.id, text, said.choice, said.choice == item.answer, state=said.state)


def _judged(
    score: JudgedScore, judge: Judge, items: Sequence[Item], answers: Mapping[str, Answer], parser: str
) -> Measures:
    return score(items, answers, parser, judge)
