"""Our step against a peer's, by response length: time, operations, memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness import Build, Process, in_turn, peaks_of
from results import print_table
from shapes import Shape


class Case(NamedTuple):
    """Response tokens of a step, and which variant of it."""

    length: int
    variant: str = ""


def compare(
    ours: Build, peer: Build, shape: Shape, *, rounds: int, threads: int, variants: Sequence[str] = ()
) -> dict[str, Any]:
    """Time, operations and memory of our step against a peer's, by response length.

    Args:
        ours: Builds our side.
        peer: Builds the other.
        shape: Of the model; its `lengths` are the response lengths.
        rounds: Paired steps per length.
        threads: Threads of each side.
        variants: Variants of our step that are timed too, against the same peer.

    Returns:
        `speedup` (peer seconds / our seconds, median over rounds), `limit` (peer operations / our operations),
        `of_limit` (speedup / limit), each with a suffix for every variant; `memory_ratio` (our peak / peer peak);
        and what they were made of. Each is keyed by response length.

    Raises:
        SystemExit: If the sides do not agree on the loss.
    """
    result: dict[str, Any] = {}

    def put(key: str, length: int, value: Any) -> None:
        result.setdefault(key, {})[str(length)] = value

    with Process(ours, shape, threads) as own, Process(peer, shape, threads) as other:
        for length in shape.lengths:
            arms = {"ours": (own, Case(length)), "peer": (other, Case(length))}
            arms |= {name: (own, Case(length, name)) for name in variants}
            timed = in_turn(arms, rounds)
            check_losses({name: steps[-1].loss for name, steps in timed.items()}, shape.tolerance)
            flops = {name: process.flops(case) for name, (process, case) in arms.items()}
            for name in ("ours", *variants):
                suffix = "" if name == "ours" else f"_{name}"
                pairs = zip(timed["peer"], timed[name], strict=True)
                speedup = statistics.median(theirs.seconds / mine.seconds for theirs, mine in pairs)
                limit = flops["peer"] / flops[name]
                put(f"speedup{suffix}", length, speedup)
                put(f"limit{suffix}", length, limit)
                put(f"of_limit{suffix}", length, speedup / limit)
            put(
                "seconds", length, {name: statistics.median(s.seconds for s in steps) for name, steps in timed.items()}
            )
            put("gigaflop", length, {name: count / 1e9 for name, count in flops.items()})
            put("loss", length, {name: steps[-1].loss for name, steps in timed.items()})
    cases = [Case(length) for length in shape.lengths]
    peaks = {name: peaks_of(build, shape, threads, cases) for name, build in (("ours", ours), ("peer", peer))}
    for case in cases:
        put("memory_ratio", case.length, peaks["ours"][case] / peaks["peer"][case])
        put("peak_mb", case.length, {name: found[case] / 2**20 for name, found in peaks.items()})
    return result


def check_losses(losses: Mapping[str, float], tolerance: float) -> None:
    """Refuses sides that do not compute the same.

    Raises:
        SystemExit: With the losses.
    """
    values = list(losses.values())
    if not all(map(math.isfinite, values)) or max(values) - min(values) > tolerance:
        raise SystemExit(f"the sides disagree on the loss: {losses}")


def print_comparison(result: Mapping[str, Any], variants: Sequence[str] = ()) -> None:
    """The table of `compare`."""
    header = [
        "response tokens",
        "step",
        "ours s",
        "peer s",
        "times",
        "limit",
        "of limit",
        "ours MB",
        "peer MB",
        "ratio",
    ]
    rows = []
    for length in result["speedup"]:
        seconds, peaks = result["seconds"][length], result["peak_mb"][length]
        for name in ("ours", *variants):
            suffix = "" if name == "ours" else f"_{name}"
            limit, part = result[f"limit{suffix}"][length], result[f"of_limit{suffix}"][length]
            memory = ["", "", ""]
            if name == "ours":
                memory = [f"{peaks['ours']:.0f}", f"{peaks['peer']:.0f}", f"{result['memory_ratio'][length]:.2f}"]
            times = [f"{seconds[name]:.2f}", f"{seconds['peer']:.2f}", f"{result[f'speedup{suffix}'][length]:.2f}"]
            rows.append([length, name.replace("_", " "), *times, f"{limit:.2f}", f"{part:.0%}", *memory])
    print_table(header, rows)
