"""What a run says of its own length."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from eval_items import StubEngine, item
from mllm_align_eval import estimate as module
from mllm_align_eval.arms import Arm
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.estimate import estimate, say_how_long
from mllm_align_eval.items import Item


class Clocked(StubEngine):
    """Takes 2 s for a question by log-probability and 10 s for one that is written; for the first batch 100 s more."""

    def __init__(self) -> None:
        super().__init__(lambda request: "yes")
        self.now = 0.0

    def choice_logps(self, requests):
        self.now += 2 * len(requests) + 100 * (not self.asked)
        return super().choice_logps(requests)

    def generate(self, requests, max_new_tokens):
        self.now += 10 * len(requests)
        return super().generate(requests, max_new_tokens)


def say(items: list[Item], path: Path, monkeypatch: pytest.MonkeyPatch) -> Clocked:
    engine = Clocked()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: engine.now))
    model = SimpleNamespace()
    arms, cache = [Arm("base")], AnswerCache(path)
    say_how_long(model, None, items, arms, cache, {}, default_length=4, batch_size=5, engine=engine)
    return engine


def test_the_time_of_all_is_told_by_the_second_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [item(f"i{n}", prompt=f"Is there a disc {n:03d}?") for n in range(300)]
    engine = say(items, tmp_path / "answers.jsonl", monkeypatch)
    # 300 questions under four pictures, 2 s by log-probability and 10 s written: 14,400 s.
    assert capsys.readouterr().err.startswith("about 4 h 0 min for 300 questions, under every picture")
    assert len(engine.asked) == 2 * 2 * 5
    assert len(AnswerCache(tmp_path / "answers.jsonl")) == 2 * 2 * 5
    say(items, tmp_path / "answers.jsonl", monkeypatch)
    assert capsys.readouterr().err == "", "a run that goes on finds its first answers, which take no time"


def test_a_short_run_asks_nothing_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say([item(f"i{n}") for n in range(39)], tmp_path / "answers.jsonl", monkeypatch).asked == []


def test_words() -> None:
    assert estimate(720, 3000, 2) == "about 12 min for 3,000 questions x 2 arms, under every picture and way of asking"
    assert estimate(20, 30, 1).startswith("about a minute or less for 30 questions, ")
