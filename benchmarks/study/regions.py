"""Does contrast between regions help beside next-token training on the same rows? One command, resumable.

    python benchmarks/study/regions.py                                  # correspondence, everything that is missing
    python benchmarks/study/regions.py --device cuda --workers 12       # runs side by side on one GPU
    python benchmarks/study/regions.py --task documents --teacher DIR   # with DoCo, of a document model in DIR
    python benchmarks/study/regions.py --task views                     # with centroids of the views of a thing

Every arm sees the same rows (both views of each), replay and steps under NF4, with LoRA on language model and tower
and a trained projector. For each arm every learning rate is tried with seed 0, the best on validation is kept, and
then all seeds run with it (of `views` one rate, chosen on the contrast alone, is that of all arms); no choice looks at
the test. Each finished run is a line of the records' file; a run that is killed is done again, a finished one never.
What is asked: the task's questions, R@1 of regions by their features alone, and the world's questions, of which
nothing should be lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from command import study_parser
from pool import work_off
from records import Records
from region_arms import LEARNING_RATES, NEEDS_TEACHER, NUM_ROWS, SEEDS, STEPS, TASKS, Run, base_run
from region_page import table


def chosen_rate(records: Records, task: str, level: str, arm: str, *size: int) -> float | None:
    """The learning rate with the best validation score, or None while one has not been tried; `size` as in `Run`."""
    tried = {rate: Run(task, level, arm, rate, SEEDS[0], *size) for rate in LEARNING_RATES}
    return records.best(tried, lambda record: record["validation"])


def next_runs(records: Records, task: str, level: str, arms: Sequence[str], *size: int) -> Iterator[Run]:
    """What is to be done next: of each arm all rates first, then the other seeds at the best."""
    for arm in arms:
        tuned = TASKS[task].tuned or arm
        rate = chosen_rate(records, task, level, tuned, *size)
        if rate is None:
            wanted = [Run(task, level, tuned, tried, SEEDS[0], *size) for tried in LEARNING_RATES]
        else:
            wanted = [Run(task, level, arm, rate, seed, *size) for seed in SEEDS]
        yield from (run for run in wanted if records.get(run) is None)


def missing_runs(records: Records, task: str, level: str, arms: Sequence[str], *size: int) -> Iterator[Run]:
    """The base, then `next_runs`."""
    base = base_run(task, level)
    if records.get(base) is None:
        yield base
    yield from next_runs(records, task, level, arms, *size)


def keep(records: Records, run: Run, record: dict[str, Any]) -> None:
    """Adds a record and tells of it."""
    records.add(record)
    print(f"{time.strftime('%H:%M:%S')} {run}: validation {record['validation']:.3f}", flush=True)


def main() -> None:
    """Runs what is missing and prints the table of what is finished."""
    parser = study_parser(__doc__, "region_runs.jsonl", "study_cache")
    parser.add_argument("--task", choices=list(TASKS), default="correspondence")
    parser.add_argument("--level", help="difficulty, or paper (default: medium, small, quarter)")
    parser.add_argument("--arms", nargs="+", help="default: all of the task that need no teacher, or there is one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="of the task, to train on (default: %(default)s)")
    parser.add_argument("--teacher", help="folder or Hub id of a document model, for DoCo")
    arguments = parser.parse_args()
    own = TASKS[arguments.task].arms
    arms = arguments.arms or [arm for arm in own if arguments.teacher or arm not in NEEDS_TEACHER]
    unknown = [arm for arm in arms if arm not in own]
    if unknown:
        parser.error(f"no arm {unknown[0]!r} of {arguments.task}; there are {', '.join(own)}")
    if not arguments.teacher and any(arm in NEEDS_TEACHER for arm in arms):
        parser.error("doco needs a document model: name it with --teacher")
    level = arguments.level or TASKS[arguments.task].level
    records = Records(arguments.runs, Run)
    from region_run import base_record, carry_out

    def job(run: Run) -> Callable[[], dict[str, Any]]:
        if run == base_run(arguments.task, level):
            return partial(base_record, arguments.task, level, arguments.device)
        return partial(carry_out, run, arguments.cache, arguments.device, arguments.teacher)

    work_off(
        lambda: missing_runs(records, arguments.task, level, arms, arguments.steps, arguments.rows),
        job,
        lambda run, record: keep(records, run, record),
        workers=arguments.workers,
        minutes=arguments.minutes,
    )
    print(table(records, arguments.task, level, arguments.steps, arguments.rows))


if __name__ == "__main__":
    main()
