"""Does a preference objective beat plain next-token training on the same pairs? One command, resumable.

    python benchmarks/study/study.py                     # everything that is not in runs.jsonl yet
    python benchmarks/study/study.py --conditions clean  # one condition

For each method every learning rate is tried with seed 0 on the clean pairs, with replay (a method that has no place
there is tried on its own condition), and the one with the best validation score is kept for all its arms; then all
seeds run with it. No choice looks at the test. Each finished run is a line of `runs.jsonl`; a run that is killed
is done again, a finished one only where the test has got a column that it lacks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from command import study_parser
from conditions import CONDITIONS
from evaluation import METRICS
from methods import CLEAN, Arm, further_arms, main_arms
from one_run import Run, base_record, carry_out
from page import write_page
from pool import work_off
from records import LEARNING_RATES, SEEDS, Records, chosen_on, chosen_rate, run_of


def next_runs(records: Records, condition: str, arm: Arm) -> Iterator[Run]:
    """What is to be done next for an arm: all rates first, then the other seeds at the best."""
    rate = chosen_rate(records, condition, arm)
    if rate is None:
        wanted = [run_of(*chosen_on(condition, arm), tried, SEEDS[0]) for tried in LEARNING_RATES]
    else:
        wanted = [run_of(condition, arm, rate, seed) for seed in SEEDS]
    for run in wanted:
        record = records.get(run)
        # A run that was asked before the test had all its columns is asked again, where its result counts.
        if record is None or (rate is not None and not set(METRICS) <= set(record["test"])):
            yield run


def missing_runs(records: Records, conditions: Sequence[str]) -> Iterator[Any]:
    """The base, then what is to be done next, arm by arm."""
    if "base" not in records.found or not set(METRICS) <= set(records.found["base"]["test"]):
        yield "base"
    todo = [(condition, arm) for condition in conditions for arm in main_arms(condition)]
    todo += [(CLEAN, arm) for arm in further_arms() if CLEAN in conditions]
    for condition, arm in todo:
        yield from next_runs(records, condition, arm)


def keep(records: Records, run: Any, record: dict[str, Any]) -> None:
    """Adds a record and tells of it."""
    earlier = records.found.get(run)
    if earlier is not None:
        # Rates were chosen by the first time, on which other conditions rely.
        record["validation"] = earlier["validation"]
    records.add(record)
    name = "base" if run == "base" else f"{run.condition}: {run.arm.name}, lr {run.learning_rate:g}, seed {run.seed}"
    print(f"{time.strftime('%H:%M:%S')} {name}: validation {record['validation']['score']:.3f}", flush=True)


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = study_parser(__doc__, "runs.jsonl", "study_cache", "README.md")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    arguments = parser.parse_args()
    records = Records(arguments.runs)
    work_off(
        lambda: missing_runs(records, arguments.conditions),
        lambda run: base_record if run == "base" else partial(carry_out, run, arguments.cache, tested=True),
        lambda run, record: keep(records, run, record),
        workers=arguments.workers,
        minutes=arguments.minutes,
    )
    write_page(records, arguments.page)
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()
