"""How much of a benchmark is asked: a smoke test of the set-up, a quick look, or all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mllm_align_eval.items import Item

# Questions (of pairs, pairs) per split at the most; None for all. Eight show that model, pictures and parser work, and
# no more; with 300 the report says which difference they can detect.
SUITES: dict[str, int | None] = {"smoke": 8, "quick": 300, "full": None}


def first_units(items: Sequence[Item], limit: int) -> list[Item]:
    """The first units of each split, pairs whole."""
    units: dict[str, set[str]] = {}
    kept = []
    for item in items:
        known, unit = units.setdefault(item.split, set()), _unit(item)
        if unit in known or len(known) < limit:
            known.add(unit)
            kept.append(item)
    return kept


def suite_items(items: Sequence[Item], suite: str) -> list[Item]:
    """The questions of a suite, in their order, pairs whole.

    Which ones is decided by a hash of their names. Files are sorted, by kind of question or yes after no, so that
    neither their start nor every tenth line is like the whole; and a smaller suite's questions are among a larger
    one's, which finds their answers in the cache, but for those under another picture.

    Args:
        items: All questions of a benchmark.
        suite: One of `SUITES`.

    Raises:
        ValueError: If there is no such suite.
    """
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; use {', '.join(SUITES)}")
    limit = SUITES[suite]
    if limit is None:
        return list(items)
    units: dict[str, set[str]] = {}
    for item in items:
        units.setdefault(item.split, set()).add(_unit(item))
    chosen = {split: set(sorted(names, key=_order)[:limit]) for split, names in units.items()}
    return [item for item in items if _unit(item) in chosen[item.split]]


def suite_label(suite: str, limit: int | None = None) -> str:
    """What part of the questions was asked, for the run card."""
    most = SUITES[suite] if limit is None else limit
    if most is None:
        return f"{suite}: every question"
    name = suite if limit is None else f"--limit {limit}"
    aim = "; to see that everything works, not to compare models" if limit is None and suite == "smoke" else ""
    return f"{name}: at most {most} questions (of pairs, pairs) of each split{aim}"


def _unit(item: Item) -> str:
    return item.pair or item.id


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
