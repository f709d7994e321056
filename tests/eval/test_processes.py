"""Runs that are killed or shared: the same numbers, and nothing asked twice."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from eval_items import StubEngine, item
from launch import Script
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.runner import answer
from runs import start_ranks, wait_for_ranks

SHARED = """
import json, sys
from pathlib import Path
from mllm_align.data.processes import processes
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import test_processes as t
state = processes()
engine, found = t.ask(Path(sys.argv[1]) / "answers.jsonl", state.process_index)
Path(sys.argv[1], f"rank{{state.process_index}}.json").write_text(json.dumps([len(engine.asked), found]))
"""


def ask(path: Path, rank: int = 0) -> tuple[StubEngine, list[tuple[str, str, bool]]]:
    """30 questions put to a model that always says yes."""
    items = [item(f"i{n}", ("no", "yes")[n % 2], prompt=f"Is there a thing {n}?", load=plain(n)) for n in range(30)]
    engine = StubEngine(lambda request: "yes")
    given = answer(None, None, items, engine=engine, identity="stub", batch_size=4, cache=AnswerCache(path, rank))
    return engine, [(entry.item, entry.text, entry.right) for entry in given]


def plain(shade: int):
    from eval_items import picture

    return lambda: picture(shade)


@pytest.mark.ddp
def test_processes_share_the_questions_and_all_get_all_answers(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SHARED.format(tests=str(Path(__file__).parents[1]), here=str(Path(__file__).parent)))
    wait_for_ranks(start_ranks(str(script), tmp_path))
    (first, one), (second, two) = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (first, second) == (16, 14)
    assert one == two
    engine, alone = ask(tmp_path / "alone.jsonl")
    assert [list(entry) for entry in alone] == one
    assert len(engine.asked) == 30
    # One process goes on where two were.
    engine, again = ask(tmp_path / "answers.jsonl")
    assert not engine.asked
    assert again == alone


RUN = """
import sys
from mllm_align.models import ModelArguments
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.run import evaluate
evaluate(ModelArguments("demo-base"), {}, world_items(24, 24, 24, regimes=["adversarial"]), sys.argv[1], batch_size=8)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_numbers_and_asks_nothing_twice(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def start(name: str) -> Script:
        return Script([str(script), str(tmp_path / name)])

    undisturbed, killed = start("whole"), start("killed")
    answers = tmp_path / "killed" / "answers.jsonl"
    for _ in range(3):
        before = answers.stat().st_size if answers.exists() else 0
        while killed.running and (not answers.exists() or answers.stat().st_size < before + 20_000):
            time.sleep(0.01)
        assert killed.running, killed.said[-2000:]
        killed.kill()
        killed = start("killed")
    for process in (undisturbed, killed):
        assert process.wait(600) == 0, process.said[-2000:]
    whole, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed"))
    assert again["arms"] == whole["arms"]
    keys = Counter(json.loads(line)["key"] for line in answers.read_text().splitlines())
    assert max(keys.values()) == 1
    expected = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines()
    assert keys.keys() == {json.loads(line)["key"] for line in expected}
