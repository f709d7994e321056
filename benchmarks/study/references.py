"""Does an image's declared name carry, whatever its place? Trains and asks, one command, resumable.

    python benchmarks/study/references.py                  # runs all that is missing, writes the page
    python benchmarks/study/references.py --minutes 60     # start no run after an hour

Each finished run is a line of the records' file; a run that is killed is done again, a finished one never.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from command import study_parser
from pool import work_off
from records import Records
from reference_arms import ARMS, BASE, SEEDS, STEPS, Run, base_run
from reference_page import page


def missing(records: Records, steps: int, seeds: Sequence[int]) -> Iterator[Run]:
    """What is to be done next: the base, then all seeds of an arm, then of the next one."""
    wanted = [base_run(), *(Run(arm, seed, steps) for arm in ARMS if arm != BASE for seed in seeds)]
    yield from (run for run in wanted if records.get(run) is None)


def keep(records: Records, run: Run, record: dict[str, Any]) -> None:
    """Adds a record and tells of it."""
    records.add(record)
    print(f"{time.strftime('%H:%M:%S')} {run}: {record.get('seconds', 0):.0f} s", flush=True)


def main() -> None:
    """Runs what is missing, and writes the page of what is finished."""
    parser = study_parser(__doc__, "reference_runs.jsonl", "reference_cache", "references.md")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    arguments = parser.parse_args()
    from reference_run import carry_out

    records = Records(arguments.runs, Run)
    work_off(
        lambda: missing(records, arguments.steps, arguments.seeds),
        lambda run: partial(carry_out, run, arguments.cache),
        lambda run, record: keep(records, run, record),
        workers=arguments.workers,
        minutes=arguments.minutes,
    )
    arguments.page.write_text(page(records, arguments.steps), encoding="utf-8")
    print(arguments.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
