"""Does a contrast make an encoder of a model that answers, and does it still answer? One command, resumable.

    python benchmarks/study/discriminative.py                          # runs all that is missing, writes the page
    python benchmarks/study/discriminative.py --arms both dual         # these arms alone
    python benchmarks/study/discriminative.py --minutes 60             # start no run after an hour

Learning rates are tried with seed 0 of `both`, and the best one on validation is that of all arms that train the base
on a frozen tower; others with seed 0 of `both_tower`, for those whose tower trains, and of `dual`, for dual encoders.
No choice looks at the test. Each finished run is a line of the records' file; a run that is killed is done again, a
finished one never. The page is written at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from command import HERE, study_parser
from discriminative_arms import ARMS, LEARNING_RATES, SEEDS, STEPS, Run, tuned_by, untrained
from discriminative_page import page
from pool import work_off
from records import Records


def chosen_rate(records: Records, tuned: str, steps: int) -> float | None:
    """The learning rate with which `tuned` has the best validation score, or None while one has not been tried."""
    tried = {rate: Run(tuned, rate, SEEDS[0], steps) for rate in LEARNING_RATES[tuned]}
    return records.best(tried, lambda record: record["validation"]["score"])


def next_runs(records: Records, arms: Sequence[str], steps: int, seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """What is to be done next: the base, then all rates to choose from, then all seeds of each arm at the best."""
    wanted = untrained()
    tuning = dict.fromkeys(tuned_by(arm) for arm in arms)
    rates = {tuned: chosen_rate(records, tuned, steps) for tuned in tuning}
    for tuned in tuning:
        wanted += [Run(tuned, rate, SEEDS[0], steps) for rate in LEARNING_RATES[tuned]]
    for arm in arms:
        rate = rates[tuned_by(arm)]
        wanted += [Run(arm, rate, seed, steps) for seed in seeds] if rate is not None else []
    yield from (run for run in dict.fromkeys(wanted) if records.get(run) is None)


def keep(records: Records, run: Run, record: dict[str, Any]) -> None:
    """Adds a record and tells of it."""
    records.add(record)
    told = f"{run}: {record.get('seconds', 0):.0f} s, {record['validation']}"
    print(f"{time.strftime('%H:%M:%S')} {told}", flush=True)


def main() -> None:
    """Runs what is missing, and writes the page of what is finished."""
    parser = study_parser(__doc__, "discriminative_runs.jsonl", "discriminative_cache", "discriminative.md")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    arguments = parser.parse_args()
    sys.path.append(str(HERE.parent))  # where operations are counted
    from discriminative_run import carry_out

    records = Records(arguments.runs, Run)
    work_off(
        lambda: next_runs(records, arguments.arms, arguments.steps, arguments.seeds),
        lambda run: partial(carry_out, run, arguments.cache),
        lambda run, record: keep(records, run, record),
        workers=arguments.workers,
        minutes=arguments.minutes,
    )
    arguments.page.write_text(page(records, arguments.steps), encoding="utf-8")
    print(arguments.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
