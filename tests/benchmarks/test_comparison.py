"""Ratios point the way their names say, sides that disagree are refused, results say how they were made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import comparison
import harness
import results
from comparison import Case, check_losses, compare, print_comparison
from harness import Timed, in_turn
from results import finish, parser_of, shape_of
from shapes import PRESETS

SHAPE = replace(PRESETS["tiny"], lengths=(4, 9))
SECONDS = {"us": 2.0, "them": 6.0}
FLOPS = {"us": 10, "them": 40}
PEAKS = {"us": 2**20, "them": 4 * 2**20}


class Fake:
    """A process that answers from the tables above; our cached variant takes half of everything."""

    calls: list[tuple[str, str, Case]]
    loss = 1.0

    def __init__(self, build: Any, shape: Any, threads: int, *, for_memory: bool = False) -> None:
        self.name, self.for_memory = build, for_memory

    def wait(self) -> None:
        pass

    def time(self, case: Case) -> Timed:
        assert not self.for_memory
        Fake.calls.append(("time", self.name, case))
        return Timed(SECONDS[self.name] * case.length / (2 if case.variant else 1), self.loss)

    def flops(self, case: Case) -> int:
        return FLOPS[self.name] // (2 if case.variant else 1)

    def peak(self, case: Case) -> int:
        assert self.for_memory
        return PEAKS[self.name]

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake.calls = []
    monkeypatch.setattr(harness, "Process", Fake)
    monkeypatch.setattr(comparison, "Process", Fake)


def result_of(**changes: Any) -> dict[str, Any]:
    return compare("us", "them", SHAPE, rounds=3, threads=1, **changes)  # type: ignore[arg-type]


def test_ratios_point_the_way_their_names_say() -> None:
    result = result_of(variants=("cached",))
    assert result["speedup"] == {"4": 3.0, "9": 3.0}
    assert result["limit"] == {"4": 4.0, "9": 4.0}
    assert result["of_limit"] == {"4": 0.75, "9": 0.75}
    assert result["memory_ratio"] == {"4": 0.25, "9": 0.25}
    assert result["speedup_cached"] == {"4": 6.0, "9": 6.0}
    assert result["limit_cached"] == {"4": 8.0, "9": 8.0}
    assert result["of_limit_cached"] == {"4": 0.75, "9": 0.75}
    assert result["seconds"]["4"] == {"ours": 8.0, "peer": 24.0, "cached": 4.0}
    assert result["peak_mb"]["9"] == {"ours": 1.0, "peer": 4.0}


def test_sides_step_in_turn_after_a_step_to_warm_up() -> None:
    us, them = (Fake(name, SHAPE, 1) for name in ("us", "them"))
    timed = in_turn({"a": (us, Case(1)), "b": (them, Case(1))}, 2)  # type: ignore[dict-item]
    assert [name for _, name, _ in Fake.calls] == ["us", "them"] * 3
    assert {name: len(steps) for name, steps in timed.items()} == {"a": 2, "b": 2}


def test_the_speedup_is_the_median_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the ratio of medians: a machine that slows down in the middle slows both steps of a pair."""
    drift = iter([1, 1, 1, 2, 10, 10, 1, 3] * 2)
    monkeypatch.setattr(Fake, "time", lambda self, case: Timed(float(next(drift)), 1.0))
    assert result_of()["speedup"]["4"] == 2.0


@pytest.mark.parametrize("other", [1.002, float("nan")])
def test_sides_that_disagree_are_refused(other: float) -> None:
    check_losses({"ours": 1.0, "peer": 1.0005}, 1e-3)
    with pytest.raises(SystemExit, match="disagree on the loss"):
        check_losses({"ours": 1.0, "peer": other}, 1e-3)


def test_the_result_says_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    arguments = parser_of("A benchmark.").parse_args(["--json", str(file), "--preset", "tiny", "--threads", "1"])
    result = result_of(variants=("cached",))
    finish(result, arguments)
    written = json.loads(file.read_text())
    assert written["speedup"] == result["speedup"]
    assert written["preset"] == "tiny"
    assert written["device"] == "cpu"
    assert written["machine"]["threads"] == 1
    assert set(written["versions"]) >= {"torch", "transformers", "trl"}
    print_comparison(result, ("cached",))
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["4", "ours", "8.00", "24.00", "3.00", "4.00", "75%", "1", "4", "0.25"]
    assert lines[2].split() == ["4", "cached", "4.00", "24.00", "6.00", "8.00", "75%"]


def test_a_gpu_preset_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"llava-1\.5-7b needs a GPU"):
        shape_of("llava-1.5-7b")
