"""What the makers of rejected responses end with: counts of what was dropped and why, the file, the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from mllm_align.data.errors import DataError
from mllm_align.data.files import write_whole
from mllm_align.data.mine.problems import Problems, RowProblem
from mllm_align.data.mine.reasons import REASONS
from mllm_align.data.output import RowFile
from mllm_align.data.processes import processes


class TextSimilarity(Protocol):
    """A text encoder; `identity` tells it apart from every other that would give other cosines."""

    identity: str

    def similarities(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """The cosine of each pair."""
        ...


class Named(Protocol):
    """A row that was read."""

    @property
    def id(self) -> str | None:
        """Its own, or None."""
        ...

    @property
    def name(self) -> str:
        """How errors speak of it."""
        ...


class Tally:
    """Counts while rows are sorted out.

    Args:
        strict: Whether a row that cannot be used is an error.

    Attributes:
        problems: Rows that could not be used.
        filters: Rows that were dropped for what was made of them, by reason.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.problems = Problems()
        self.filters: Counter[str] = Counter()
        self._ids: set[str] = set()

    def problem(self, problem: str) -> None:
        """One more row that could not be used, as `kind: message`.

        Raises:
            DataError: If `strict`.
        """
        if self.strict:
            raise DataError(problem)
        self.problems.add(problem)

    def is_new(self, item: Named) -> bool:
        """Whether no earlier row has its id; of rows with one id the first is used, and the others are problems.

        Raises:
            DataError: If `strict` and one has.
        """
        if item.id is None or item.id not in self._ids:
            self._ids.update([item.id] if item.id is not None else [])
            return True
        self.problem(str(RowProblem("duplicate id", f"{item.name} has the id of an earlier row")))
        return False


def write_results(file: RowFile, rows: Iterable[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    """The rows and, beside them, the report; by the main process alone. A collective.

    Raises:
        FileExistsError: If the file is there with another content and may not be replaced.
    """
    if processes().is_main_process:
        file.write(rows)  # one by one: pictures that rows hold are not in memory together
        text = json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n"
        write_whole(file.report_path, text.encode())
    processes().wait_for_everyone()


def summary_lines(report: Mapping[str, Any], file: str) -> list[str]:
    """For a terminal: how many rows are kept, and why the others are not, each name of a filter in words too."""
    lines = [f"{report['rows']:,} rows, {report['kept']:,} kept, in {file}"]
    for name, count in sorted(report["filters"].items()):
        reason = f" ({REASONS[name]})" if name in REASONS else ""
        lines.append(f"  dropped for {name}: {count:,}{reason}")
    lines += [
        f"  {kind}: {entry['rows']:,}, such as {entry['examples'][0]}" for kind, entry in report["problems"].items()
    ]
    return lines
