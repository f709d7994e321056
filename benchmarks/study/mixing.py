"""Does a mixer give a model what its own tower is blind to? One command, resumable.

    python benchmarks/study/mixing.py                                # trains the towers, then runs all that is missing
    python benchmarks/study/mixing.py --arms no_mixer gated          # these arms alone
    python benchmarks/study/mixing.py --long                         # the arms that need more steps, with more
    python benchmarks/study/mixing.py --device cuda --workers 12     # runs side by side on one GPU

Towers, base model and the result of mining are kept in the cache. Every learning rate is tried with seed 0 of one
mixer, and the best on validation is that of all arms; with more steps every arm tries them itself. No choice looks at
the test. Each finished run is a line of the records' file; a run that is killed is done again, a finished one never.
The page is written at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from command import study_parser
from mixing_arms import (
    ARMS,
    BASE,
    LEARNING_RATES,
    LONG_ARMS,
    LONG_STEPS,
    SEEDS,
    SHORT_ARMS,
    STAGED,
    STEPS,
    Run,
    tuned_on,
)
from mixing_page import page
from pool import work_off
from records import Records


def chosen_rate(records: Records, arm: str, steps: int) -> float | None:
    """The learning rate with the best validation score where an arm's is chosen; None while one has not been tried."""
    tried = {rate: Run(tuned_on(arm, steps), rate, SEEDS[0], steps) for rate in LEARNING_RATES}
    return records.best(tried, lambda record: record["validation"])


def next_runs(records: Records, arms: Sequence[str], steps: int) -> Iterator[Run]:
    """What is to be done next: the base, then for each arm all rates where it is tuned, then all seeds at the best."""
    wanted = {BASE: None}
    for arm in arms:
        rate = chosen_rate(records, arm, steps)
        if rate is None:
            wanted |= {Run(tuned_on(arm, steps), tried, SEEDS[0], steps): None for tried in LEARNING_RATES}
        else:
            wanted |= {Run(arm, rate, seed, steps): None for seed in SEEDS}
    yield from (run for run in wanted if records.get(run) is None)


def keep(records: Records, run: Run, record: dict[str, Any]) -> None:
    """Adds a record and tells of it."""
    records.add(record)
    print(f"{time.strftime('%H:%M:%S')} {run}: validation {record['validation']:.3f}", flush=True)


def main() -> None:
    """Trains and mines what is missing, runs what is missing, and writes the page of what is finished."""
    parser = study_parser(__doc__, "mixing_runs.jsonl", "mixing_cache", "mixing.md")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="all, unless --long")
    parser.add_argument("--long", action="store_true", help=f"{LONG_STEPS} steps of {', '.join(LONG_ARMS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the runs")
    arguments = parser.parse_args()
    arguments.steps = LONG_STEPS if arguments.long else STEPS
    arguments.arms = arguments.arms or list(LONG_ARMS if arguments.long else SHORT_ARMS)
    from mixing_folders import prepare_queries, prepared
    from mixing_mining import mining_record
    from mixing_run import carry_out

    found = prepared(arguments.cache)
    if STAGED in arguments.arms:
        prepare_queries(found)
    mining = arguments.cache / "mining.json"
    if not mining.exists():
        mining.write_text(json.dumps(mining_record(found.blind, found.seeing), indent=1) + "\n", encoding="utf-8")
    records = Records(arguments.runs, Run)
    work_off(
        lambda: next_runs(records, arguments.arms, arguments.steps),
        lambda run: partial(carry_out, run, arguments.cache, arguments.device),
        lambda run, record: keep(records, run, record),
        workers=arguments.workers,
        minutes=arguments.minutes,
    )
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in (found.probes, mining)]
    arguments.page.write_text(page(records, *facts), encoding="utf-8")
    print(arguments.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
