"""What is wrong with rows that cannot be used, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mllm_align.data.errors import DataError

EXAMPLES = 5


class PairProblem(DataError):
    """A row that is no usable pair.

    Attributes:
        kind: What is wrong with it, in two or three words; rows are counted by it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        """As it is recorded: `kind: message`."""
        return f"{self.kind}: {self.args[0]}"


@dataclass
class Problems:
    """Rows that could not be used, by kind, with the first messages of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str | PairProblem) -> None:
        """One more, as `kind: message`."""
        kind, _, message = str(problem).partition(": ")
        self.counts[kind] += 1
        found = self.examples.setdefault(kind, [])
        if len(found) < EXAMPLES:
            found.append(message)

    def as_dict(self) -> dict[str, Any]:
        """`{kind: {"rows": how many, "examples": the first messages}}`."""
        return {kind: {"rows": count, "examples": self.examples[kind]} for kind, count in sorted(self.counts.items())}
