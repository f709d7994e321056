"""Documents in the rendered world: what is asked, and that they are scored as DocVQA is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mllm_align.cli import main
from mllm_align_eval.benchmarks.world_documents import WORLD_DOCUMENTS, document_items
from mllm_align_eval.items import check_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.text_metrics import anls


@pytest.fixture(scope="module")
def items():
    return document_items(12)


def test_both_pages_of_a_pair_are_asked_about(items):
    check_items(items)
    assert Counter(item.split for item in items) == {"small": 24, "large": 24}
    for one, other in zip(items[::2], items[1::2], strict=True):
        assert (one.prompt, one.cluster) == (other.prompt, other.cluster)
        assert one.truth["answers"] != other.truth["answers"]
    assert [item.pictures[0].load().size for item in (items[0], items[-1])] == [(64, 64), (448, 448)]


def test_it_is_scored_by_anls(items):
    texts = {item.id: item.truth["answers"][0][: 1 + number % 7] for number, item in enumerate(items)}
    scores = {item.id: anls(texts[item.id], item.truth["answers"]) for item in items}
    found = measures_of(WORLD_DOCUMENTS, items, texts, "strict")
    assert found["world_documents/anls"].metric.value() == pytest.approx(sum(scores.values()) / len(scores))
    for paper in ("small", "large"):
        own = [scores[item.id] for item in items if item.split == paper]
        assert found[f"world_documents/{paper}/anls"].metric.value() == pytest.approx(sum(own) / len(own))
        assert 0 < sum(own) / len(own) < 1
    tables = [scores[item.id] for item in items if item.truth["groups"] == ("table",)]
    assert found["world_documents/table/anls"].metric.value() == pytest.approx(sum(tables) / len(tables))


def test_it_needs_no_files():
    assert len(benchmark_items("world_documents", None, None, 4)) == 8


@pytest.mark.slow
def test_a_run_asks_the_shipped_base_without_files(tmp_path, monkeypatch):
    monkeypatch.delenv("MLLM_ALIGN_DATA", raising=False)
    named = ["--benchmark", "world_documents", "world_correspondence", "--limit", "2"]
    assert main(["eval", "run", "demo-base", *named, "--output", str(tmp_path / "run")]) == 0
    arm = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]["base"]
    for metric in (
        "world_documents/anls_generated",
        "world_correspondence/acc",
        "world_documents/small/anls_generated",
    ):
        assert 0 <= arm[metric]["value"] <= 1
