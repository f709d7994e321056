"""The judge: asked once, kept on disk, resumed, never mixed; and over a server on the loopback address."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mllm_align.data.mine.speaking import Ask
from mllm_align_eval.items import Item
from mllm_align_eval.judge import Judge, correlation, fill, load_judge, quality_measures

ITEMS = [Item(str(n), "b", "s", "k", str(n // 2), "?", ()) for n in range(6)]
TEMPLATE = "Rate {answer} as JSON {}: {other}"
FIELDS = {str(n): {"answer": f"answer {n}"} for n in range(5)}


class Stub:
    """Says what its script says in turn, or echoes; counts."""

    def __init__(self, identity: str = "stub", fail_after: int | None = None) -> None:
        self.identity = identity
        self.asked: list[str] = []
        self.fail_after = fail_after

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise ConnectionError("gone")
        self.asked += [ask.prompt for ask in asks]
        return [f"{self.identity}: {ask.prompt} #{len(self.asked)}" for ask in asks]


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict]]]:
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = {"choices": [{"message": {"content": f"Fine. Rating: {len(bodies) % 7}"}}]}
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    server.shutdown()
    server.server_close()


def test_templates_are_filled_at_once():
    assert fill("{a} {b} {} {c}", {"a": "{b}", "b": "x"}) == "{b} x {} {c}"


def test_every_run_is_asked_once_and_kept(tmp_path: Path):
    path = tmp_path / "new" / "judge.jsonl"
    first = Stub()
    replies = Judge(first, path, runs=3, block_size=4).ask(TEMPLATE, FIELDS)
    assert len(first.asked) == 15
    assert first.asked[0] == "Rate answer 0 as JSON {}: {other}"
    assert all(len(texts) == 3 for texts in replies.values())
    again = Stub()
    assert Judge(again, path, runs=3).ask(TEMPLATE, FIELDS) == replies
    assert not again.asked
    # Fewer runs are the first of them; another item and another text are asked.
    assert Judge(again, path).ask(TEMPLATE, FIELDS) == {name: texts[:1] for name, texts in replies.items()}
    Judge(again, path).ask(TEMPLATE, {**FIELDS, "5": {"answer": "new"}})
    assert len(again.asked) == 1
    Judge(again, path).ask(TEMPLATE + "!", FIELDS)
    assert len(again.asked) == 6


def test_another_judge_gets_none_of_its_replies(tmp_path: Path):
    path = tmp_path / "judge.jsonl"
    Judge(Stub("a"), path).ask(TEMPLATE, FIELDS)
    other = Judge(Stub("b"), path)
    assert all(text.startswith("b: ") for texts in other.ask(TEMPLATE, FIELDS).values() for text in texts)


def test_what_was_judged_before_a_failure_is_kept(tmp_path: Path):
    path = tmp_path / "judge.jsonl"
    with pytest.raises(ConnectionError):
        Judge(Stub(fail_after=4), path, block_size=2).ask(TEMPLATE, FIELDS)
    with path.open("ab") as file:
        file.write(b'{"key": "broken')
    rest = Stub()
    assert len(Judge(rest, path, block_size=2).ask(TEMPLATE, FIELDS)) == 5
    assert len(rest.asked) == 1


def test_the_card_names_judge_and_template():
    judge = Judge(Stub())
    judge.ask(TEMPLATE, FIELDS)
    card = judge.card()
    assert (card["judge"], card["runs"]) == ("stub", 1)
    assert [len(digest) for digest in card["templates"]] == [64]
    other = Judge(Stub())
    other.ask(TEMPLATE + " ", FIELDS)
    assert other.card()["templates"] != card["templates"]
    assert card["templates"][0][:8] in judge.caption()


def test_an_endpoint_judges(endpoint: tuple[str, list[dict]], tmp_path: Path):
    url, bodies = endpoint
    judge = load_judge(url, "tiny", cache=tmp_path / "judge.jsonl", runs=2)
    replies = judge.ask("Rate {answer}", FIELDS)
    assert len(bodies) == 10
    assert {body["messages"][0]["content"] for body in bodies} == {f"Rate answer {n}" for n in range(5)}
    assert all(text.startswith("Fine. Rating: ") for texts in replies.values() for text in texts)
    assert load_judge(url, "tiny", cache=tmp_path / "judge.jsonl", runs=2).ask("Rate {answer}", FIELDS) == replies
    assert len(bodies) == 10
    assert judge.card()["judge"] == f"tiny at {url}"


def test_what_a_judge_needs():
    with pytest.raises(ValueError, match="--judge-model is missing"):
        load_judge("http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="runs and block_size"):
        Judge(Stub(), runs=0)


def test_how_usable_replies_are():
    replies = {str(n): ("1", "1") for n in range(6)} | {"1": ("1", "2"), "2": ("x", "x"), "3": ("1", "x")}

    def read(text: str) -> int | None:
        return int(text) if text.isdigit() else None

    found = quality_measures(ITEMS, replies, read)
    assert found["unparsed"].metric.value() == pytest.approx(3 / 12)
    assert found["self_consistency"].metric.value() == pytest.approx(3 / 6)
    assert "self_consistency" not in quality_measures(
        ITEMS, {name: texts[:1] for name, texts in replies.items()}, read
    )


def test_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6), rng.normal(size=6) + 1e4
    found = correlation(ITEMS, list(x), list(y))
    assert found.metric.value() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    # Of a part of the items too, as a resample asks for it.
    part = found.metric.statistic(found.metric.columns[:4].sum(axis=0))
    assert float(part) == pytest.approx(np.corrcoef(x[:4], y[:4])[0, 1], abs=1e-9)
    assert math.isnan(correlation(ITEMS, [1.0] * 6, list(y)).metric.value())
