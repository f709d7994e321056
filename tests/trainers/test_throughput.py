from __future__ import annotations

import pytest

from mllm_align.trainers import throughput
from mllm_align.trainers.throughput import TokenRate


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_each_reading_counts_from_the_last(clock: Clock) -> None:
    rate = TokenRate()
    rate.start(1000)
    clock.now += 2.0
    rate.start(1500)  # runs already
    assert rate.read(2000) == 500.0
    clock.now += 4.0
    assert rate.read(2100) == 25.0


def test_time_between_two_runs_does_not_count(clock: Clock) -> None:
    rate = TokenRate()
    rate.start(0)
    clock.now += 1.0
    assert rate.read(10) == 10.0
    rate.reset()
    clock.now += 1000.0
    rate.start(10)
    clock.now += 1.0
    assert rate.read(30) == 20.0


def test_nothing_is_known_before_the_start(clock: Clock) -> None:
    assert TokenRate().read(50) == 0.0
