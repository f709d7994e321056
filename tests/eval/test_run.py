"""An evaluation by names and folders: what it writes, and what it refuses before it asks anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from eval_items import item
from mllm_align.data.mine.speaking import Ask
from mllm_align.data.world import PAIR_KINDS
from mllm_align.demo import base_path
from mllm_align.models import ModelArguments, load_model
from mllm_align_eval.benchmark import Hub
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.items import Item
from mllm_align_eval.judge import Judge
from mllm_align_eval.run import benchmark_items, evaluate


def test_base_and_adapter_are_asked_the_same_and_a_second_run_needs_overwrite(tmp_path: Path) -> None:
    model, _ = load_model(str(base_path()))
    lora = LoraConfig(r=2, target_modules=["model.language_model.layers.0.self_attn.q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    items = world_items(8, 2 * len(PAIR_KINDS), 8, regimes=["adversarial"])
    arguments = ModelArguments(str(base_path()))
    results = evaluate(arguments, {"mine": str(tmp_path / "adapter")}, items, tmp_path / "out")
    assert set(results["arms"]) == {"base", "mine"}
    assert set(results["differences"]) == {"mine-base"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["arms"].keys() == results["arms"].keys()
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(FileExistsError, match="overwrite"):
        evaluate(arguments, {}, items, tmp_path / "out")
    again = evaluate(arguments, {"mine": str(tmp_path / "adapter")}, items, tmp_path / "out", overwrite=True)
    assert again["arms"] == results["arms"]


def test_what_cannot_be_asked_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        evaluate(ModelArguments("nowhere"), {"base": "x"}, world_items(4, 4, 4), tmp_path)


class Rater:
    """Rates by how often it was asked."""

    identity = "rater"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        self.asked += [ask.prompt for ask in asks]
        return [f"Rating: {len(self.asked) % 7}" for _ in asks]


def open_question(name: str) -> Item:
    truth = {"fields": {"question": "What is there?", "gt_answer": "A disc."}, "template": "{question} {answer}"}
    return item(name, "", choices=(), benchmark="mmhal", split="questions", prompt="What is there?", truth=truth)


def test_a_judge_reads_the_answers_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items, model = [open_question(f"mmhal/{n}") for n in range(4)], ModelArguments(str(base_path()))
    plain = evaluate(model, {}, items, tmp_path / "out")
    assert "mmhal: without --judge the answers are written and kept, and not rated" in caplog.text
    assert not any("rating" in key for key in plain["arms"]["base"])
    rater = Rater()
    judge = Judge(rater, tmp_path / "judge.jsonl")
    judged = evaluate(model, {}, items, tmp_path / "out", judge=judge, overwrite=True)
    assert judged["arms"]["base"]["mmhal/rating_generated"]["n"] == 4
    assert judged["judge"] == judge.card()
    assert judged["judge"]["judge"] == "rater"
    asked = len(rater.asked)
    evaluate(model, {}, items, tmp_path / "out", judge=Judge(rater, tmp_path / "judge.jsonl"), overwrite=True)
    assert len(rater.asked) == asked


def test_what_a_model_that_writes_cannot_answer(tmp_path: Path) -> None:
    queries = retrieval_queries(tmp_path)
    with pytest.raises(ValueError, match="eval score flickr30k --dual-encoder MODEL"):
        evaluate(ModelArguments("nowhere"), {}, queries, tmp_path / "out")
    with pytest.raises(ValueError, match="world: scored without a judge; leave --judge out"):
        evaluate(ModelArguments("nowhere"), {}, world_items(4, 4, 4), tmp_path / "out", judge=Judge(Rater()))


def retrieval_queries(folder: Path) -> list[Item]:
    rows = [{"image": f"{n}.jpg", "caption": [f"a disc {n}"]} for n in range(3)]
    (folder / "flickr30k_test.json").write_text(json.dumps(rows))
    return BENCHMARKS["flickr30k"].read(folder, PictureFolder(None, "nowhere"))


def test_copies_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, split: str) -> list[dict[str, int]]:
        asked.append((path, name, split))
        return [{"n": number} for number in range(4)]

    monkeypatch.setattr("mllm_align_eval.run.datasets.load_dataset", load)
    known = replace(
        BENCHMARKS["pope"], hub=(Hub("a/b", lambda rows: [item(f"i{row['n']}") for row in rows], "validation"),)
    )
    monkeypatch.setitem(BENCHMARKS, "pope", known)
    assert len(benchmark_items("pope", "hub")) == 4
    assert len(benchmark_items("pope", "hub", limit=3)) == 3
    assert asked[0] == ("a/b", None, "validation")
    monkeypatch.setitem(BENCHMARKS, "pope", replace(known, hub=()))
    with pytest.raises(ValueError, match="no copy of pope on the Hub is known here: get it from https"):
        benchmark_items("pope", "hub")


def test_a_limit_keeps_pairs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [item(f"i{n}", pair=f"p{n // 2}") for n in range(8)] + [item(f"s{n}", split="single") for n in range(5)]
    monkeypatch.setitem(BENCHMARKS, "pope", replace(BENCHMARKS["pope"], hub=(Hub("a/b", lambda rows: asked),)))
    monkeypatch.setattr("mllm_align_eval.run.datasets.load_dataset", lambda *_, **__: [])
    found = benchmark_items("pope", "hub", limit=2)
    assert [each.id for each in found] == ["i0", "i1", "i2", "i3", "s0", "s1"]
