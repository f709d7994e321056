"""`data counterfactual` and `data check --balance` from the command line, on the world and the demo base."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align.cli.blind import PER_TOKEN, SUMMED, scores_without_image
from mllm_align.data.world import pair_rows
from mllm_align.models import load_model
from tiny import save_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "bilder ü"
    folder.mkdir()
    lines = []
    for number, row in enumerate(pair_rows(16)):
        for column in ("image", "contrast_image"):
            row[column].save(folder / f"{number} {column}.png")
            row[column] = f"{number} {column}.png"
        lines.append(json.dumps(row))
    (folder / "3 image.png").write_bytes(b"broken")
    (folder / "paare.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "paare.jsonl"


def run(*argv: Any) -> int:
    encoders = ("--look-alike", "demo-base", "--meaning", "demo-base", "--above", "-1", "--below", "1")
    return main(["data", "counterfactual", *map(str, argv), *encoders])


def test_files_summary_and_report(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    assert run(source, "--output", output, "--validation", 5, "--flips", "--balance", "equal") == 0
    said = capsys.readouterr().out
    assert "16 rows in, 1 that cannot be used" in said
    assert "damaged image 1, such as pair/" in said
    assert "15 of 15 pairs kept by the filter" in said
    assert "0 duplicates" in said
    assert "colour: " in said
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    validation = [json.loads(line) for line in (tmp_path / "out_validation.jsonl").read_text().splitlines()]
    assert (len(kept), len(validation)) == (report["training"], 5)
    assert all(Path(row["image"]).is_file() or (tmp_path / row["image"]).is_file() for row in kept)
    assert run(source, "--output", output, "--validation", 5, "--flips", "--balance", "equal") == 0


def test_why_there_are_no_flips_and_too_few_for_validation(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        row["chosen"], row["rejected"] = "It is red.", "It is blue."
        row["image"] = "0 image.png"  # of all pairs: one group
    rows[0]["chosen"] = "He left the room."
    other = source.with_name("other.jsonl")
    other.write_text("\n".join(map(json.dumps, rows)))
    assert run(other, "--output", tmp_path / "out.jsonl", "--validation", 5, "--flips") == 0
    said = capsys.readouterr().out
    assert "0 of 0 possible left-right flips" in said
    assert "no flip of 1 pairs: left or right may mean something else" in said
    assert "no flip of 15 pairs: text names no side" in said
    assert "leave --flips out, or give rows with such texts" in said
    assert "5 were asked for; pairs that share an image stay together, in 1 groups of at most" in said
    assert "nothing can be split off" in said
    assert run(source, "--output", tmp_path / "all.jsonl", "--validation", 40) == 0
    assert "and there are 15 pairs in all: ask for fewer, or keep more (--above, --below)" in capsys.readouterr().out


def test_refusals_name_what_to_do(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: Any) -> str:
        assert run(*argv) == 2
        return capsys.readouterr().err

    assert "not an image" in refused(source, "--output", tmp_path / "a.jsonl", "--strict")
    assert "--rewrite-model" in refused(source, "--output", tmp_path / "b.jsonl", "--rewrite", "http://127.0.0.1:9/v1")
    assert "rows are written to" in refused(source, "--output", tmp_path / "c.txt")
    (tmp_path / "d.jsonl").write_text("mine\n")
    assert "--overwrite" in refused(source, "--output", tmp_path / "d.jsonl")
    assert "no file" in refused(tmp_path / "none.jsonl", "--output", tmp_path / "e.jsonl")


def test_an_endpoint_writes_texts_out(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            last = body["messages"][-1]["content"].rsplit("\n", 1)[1].partition(": ")[2]
            text = f"I can see: {last.split(' (asked')[0]}"
            content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert run(source, "--output", tmp_path / "out.jsonl", "--rewrite", url, "--rewrite-model", "tiny") == 0
    server.shutdown()
    server.server_close()
    said = capsys.readouterr().out
    assert "15 of 15 pairs rewritten" in said
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert row["chosen"].startswith("I can see: ")
    assert row["texts_by"] == f"tiny at {url}"


def test_balance_with_and_without_a_model(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(source), "--balance"]) == 0
    assert SUMMED not in capsys.readouterr().out
    assert main(["data", "check", str(source), "--balance", "--model", "demo-base"]) == 0
    said = capsys.readouterr().out
    assert "16 rows; kept together: rows that share an image" in said
    assert "answer frequencies" in said
    assert SUMMED in said
    assert "text alone tells" in said
    assert "colour:" in said


def test_scores_are_those_of_single_rows(tmp_path: Path) -> None:
    model, processor = load_model(str(save_tiny("llava", tmp_path)))
    rows = [{key: value for key, value in row.items() if key != "id"} for row in pair_rows(7)]
    rows[2]["chosen"] = "a small blue star on the left, and more words"
    together = scores_without_image(model, processor, rows, progress=False)
    alone = [scores_without_image(model, processor, [row], progress=False) for row in rows]
    for name in (SUMMED, PER_TOKEN):
        assert together[name] == [found[name][0] for found in alone]
        assert set(together[name]) <= {0.0, 0.5, 1.0}


def test_rows_that_cannot_be_scored_are_nan_and_images_are_not_read(tmp_path: Path) -> None:
    model, processor = load_model(str(save_tiny("llava", tmp_path)))
    rows = [
        {"prompt": "What?", "chosen": "red", "rejected": "red", "image": "nowhere.png"},
        {"prompt": "What?", "chosen": "red"},
        {"prompt": "What?", "chosen": 3, "rejected": "red"},
    ]
    found = scores_without_image(model, processor, rows, progress=False)
    assert [str(value) for value in found[SUMMED]] == ["0.5", "nan", "nan"]
