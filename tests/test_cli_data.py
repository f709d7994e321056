"""The commands that make data with a model: what they write, that it is right, what they refuse and how."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align.cli.speaker import ModelSpeaker
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.differing import FILTERS, Differing
from mllm_align.data.mine.masking import Masking
from mllm_align.data.mine.realign import NO_NEIGHBOUR, NOT_COMPLETED, NOTHING_TO_MASK, TOO_SIMILAR
from mllm_align.data.mine.reasons import REASONS
from mllm_align.data.mine.speaking import Ask
from mllm_align.data.output import RowFile
from mllm_align.data.world import Scene, instruction_rows
from mllm_align.models import attach_lora
from mllm_align.models.arguments import ModelArguments
from runs import kill_amid
from tiny import tiny
from world_truth import row_scenes, share_false

COMMANDS = ("data reject", "data retrieve")
NUM_ROWS, WORLD = 56, {"seed": 3, "distribution": "balanced"}
RETRIEVE = ("--complete", "continue", "--text-model", "none", "--band", "-1", "0.995", "--index", "exact")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right answers about balanced scenes, in a file whose name is not ASCII."""
    path = tmp_path_factory.mktemp("welt ü") / "zeilen é.jsonl"
    RowFile(path).write(instruction_rows(NUM_ROWS, noise=0, **WORLD))
    return path


@pytest.fixture(scope="module")
def scenes(rows: Path) -> dict[str, Scene]:
    names = [json.loads(line)["id"] for line in rows.read_text(encoding="utf-8").splitlines()]
    return dict(zip(names, row_scenes(NUM_ROWS, **WORLD), strict=True))


def run(command: str, rows: Path, output: Path, *options: str) -> int:
    fixed = ("--model", "demo-base", "--batch-size", "64", "--max-new-tokens", "48")
    return main(["data", command, str(rows), "--output", str(output), *fixed, *options])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: mllm-align {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("image", "least"), [("none", 0.5), ("other", 0.5)])
def test_rejected_responses_are_wrong(
    image: str, least: float, rows: Path, scenes: dict[str, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert run("reject", rows, output, "--image", image) == 0
    kept = read(output)
    assert share_false(kept, scenes) >= 0.95
    assert len(kept) >= least * NUM_ROWS
    assert Counter(row["kind"] for row in kept)["caption"] >= 6
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["kept"] + sum(report["filters"].values()) == report["rows"] == NUM_ROWS
    said = capsys.readouterr().out
    assert f"{NUM_ROWS} rows, {len(kept)} kept" in said
    assert report["filters"]
    assert all(f"dropped for {name}: {count} ({REASONS[name]})" in said for name, count in report["filters"].items())


def test_every_reason_is_explained() -> None:
    ours = {NOTHING_TO_MASK, NO_NEIGHBOUR, NOT_COMPLETED, TOO_SIMILAR, "similarity", *FILTERS}
    assert set(REASONS) == ours


def test_a_model_that_follows_no_instructions_is_told_the_other_way(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(asks: Any, max_new_tokens: int) -> list[str]:
        return [""] * len(asks)

    monkeypatch.setattr(silent, "identity", "silent", raising=False)
    monkeypatch.setattr("mllm_align.cli.retrieve.load_speaker", lambda arguments: silent)
    options = ("--limit", "6", "--text-model", "none", "--index", "exact")
    assert run("retrieve", rows, tmp_path / "out.jsonl", *options) == 0
    said = capsys.readouterr().out
    assert "6 rows, 0 kept" in said
    assert "responses were not completed as they were asked for" in said
    assert "needs --complete continue, with another --output" in said
    assert run("retrieve", rows, tmp_path / "other.jsonl", *options, "--complete", "continue") == 0
    assert "--complete continue" not in capsys.readouterr().out


def test_the_help_names_the_text_encoder_and_the_way_without(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "999")  # or names are cut at their hyphens
    with pytest.raises(SystemExit):
        main(["data", "retrieve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: sentence-transformers/all-mpnet-base-v2, fetched from the Hub" in said
    assert "none goes without" in said


def test_rows_that_are_others_are_named(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, output = tmp_path / "few.jsonl", tmp_path / "out.jsonl"
    RowFile(few).write([row | {"image": str(rows.parent / row["image"])} for row in read(rows)[:4]])
    given = ("--model", "demo-base", "--max-new-tokens", "8", "--output", str(output))
    assert main(["data", "reject", str(rows), "--limit", "6", *given]) == 0
    work = tmp_path / "out.jsonl.work" / "answers"
    assert refused(capsys, "data", "reject", str(few), "--overwrite", *given) == (
        f"error: the job in {work} was made from 6 rows of {rows}, this one has 4 rows of {few}: remove the folder "
        f"{work} to begin anew, or name another output"
    )
    # The same rows and pictures in another place are the same job, and it is finished.
    moved = tmp_path / "moved"
    shutil.copytree(rows.parent, moved)
    before = output.read_bytes()
    assert main(["data", "reject", str(moved / rows.name), "--limit", "6", "--overwrite", *given]) == 0
    names = [
        [Path(json.loads(line)["image"]).name for line in text.splitlines()] for text in (before, output.read_bytes())
    ]
    assert names[0] == names[1]


def test_retrieved_and_completed_responses_are_wrong(
    rows: Path, scenes: dict[str, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert run("retrieve", rows, output, *RETRIEVE) == 0
    kept = read(output)
    assert share_false(kept, scenes) >= 0.95
    assert len(kept) >= 0.6 * NUM_ROWS
    assert all(-1 <= row["contrast_similarity"] <= 0.995 for row in kept)
    own = {row["id"]: row["image"] for row in read(rows)}
    assert all(Path(own[row["contrast_id"]]).name == Path(row["contrast_image"]).name for row in kept)
    assert all(row["contrast_id"] != row["id"] for row in kept)
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["kept"] + sum(report["filters"].values()) == report["rows"] == NUM_ROWS
    assert f"{NUM_ROWS} rows, {len(kept)} kept" in capsys.readouterr().out
    assert len(load_rows(output)) == len(kept)


def test_limit_first_turn_and_further_pictures(rows: Path, tmp_path: Path) -> None:
    talk = [
        {**row, "prompt": [
            {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]},
            {"role": "user", "content": "Really?"},
        ], "chosen": "yes", "image": str(rows.parent / row["image"])}
        for row in read(rows)
    ]  # fmt: skip
    RowFile(tmp_path / "talk.jsonl").write(talk)
    pictures = next(path for path in rows.parent.iterdir() if path.is_dir())
    options = ("--limit", "8", *RETRIEVE, "--images", str(pictures), "--first-turn")
    assert run("retrieve", tmp_path / "talk.jsonl", tmp_path / "out.jsonl", *options) == 0
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert (report["rows"], report["problems"]) == (8, {})
    assert report["retrieval"]["pictures"] == 8 + NUM_ROWS
    kept = read(tmp_path / "out.jsonl")
    assert any(row["contrast_id"].endswith(".png") for row in kept)
    assert {row["chosen"] for row in kept} <= {row["chosen"] for row in read(rows)[:8]}


def test_bad_rows_and_no_rows(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [row | {"image": str(rows.parent / row["image"])} for row in read(rows)[:8]]
    bad[0]["image"], bad[1]["image"] = str(tmp_path / "fehlt ü.png"), str(tmp_path / "kaputt ü.png")
    (tmp_path / "kaputt ü.png").write_bytes(b"no picture")
    bad[3]["id"] = bad[2]["id"]
    RowFile(tmp_path / "bad.jsonl").write(bad)
    for command, options in (("reject", ()), ("retrieve", RETRIEVE)):
        assert run(command, tmp_path / "bad.jsonl", tmp_path / f"{command}.jsonl", *options) == 0
        out = capsys.readouterr().out
        for line in ("missing file: 1, such as", "damaged image: 1, such as", "duplicate id: 1, such as", "ü.png"):
            assert line in out
    arguments = ("--model", "demo-base", "--output", str(tmp_path / "strict.jsonl"), "--strict")
    assert "fehlt ü.png" in refused(capsys, "data", "reject", str(tmp_path / "bad.jsonl"), *arguments)
    (tmp_path / "none.jsonl").write_text("")
    for command, options in (("reject", ()), ("retrieve", RETRIEVE)):
        assert run(command, tmp_path / "none.jsonl", tmp_path / f"no_{command}.jsonl", *options) == 0
        assert "0 rows, 0 kept" in capsys.readouterr().out


def test_options_reach_the_jobs(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def job(rows: Any, *rest: Any, **others: Any) -> dict[str, Any]:
        given.update(vars(rest[-1]) | others)
        return {"rows": 0, "kept": 0, "filters": {}, "problems": {}}

    def similar(embeddings: Any, folder: Any, **settings: Any) -> None:
        given.update(settings)

    for command, name in (("reject", "rejecting.make_rejected"), ("retrieve", "realign.make_realigned")):
        monkeypatch.setattr(f"mllm_align.data.mine.{name}", job)
        monkeypatch.setattr(f"mllm_align.cli.{command}.load_speaker", lambda arguments: arguments.model)
        monkeypatch.setattr(f"mllm_align.cli.{command}.load_text_encoder", lambda name: name)
    monkeypatch.setattr("mllm_align.data.mine.encoder.ImageEmbedder", lambda path: SimpleNamespace(identity=path))
    monkeypatch.setattr("mllm_align.data.mine.embed.embed_images", lambda *_, **__: Found())
    monkeypatch.setattr("mllm_align.data.mine.neighbours.similar_images", similar)
    shared = ("--seed", "7", "--text-model", "an encoder", "--max-text-similarity", "0.8", "--strict")
    own = ("--closed-words", "3", "--min-new", "2", "--max-overlap", "0.7", "--length-ratio", "0.5", "2", "--contrast")
    assert run("reject", rows, tmp_path / "a.jsonl", *shared, *own, "--image", "other") == 0
    assert given == {
        "shown": "other", "differing": Differing(3, 2, 0.7, (0.5, 2.0)), "max_similarity": 0.8, "contrast": True,
        "seed": 7, "max_new_tokens": 48, "similarity": "an encoder", "strict": True, "overwrite": False,
        "block_size": 64, "made_of": str(rows),
    }  # fmt: skip
    given.clear()
    own = ("--band", "0.3", "0.6", "--k", "3", "--index", "hnsw", "--mask-share", "0.4", "--max-segments", "2")
    assert run("retrieve", rows, tmp_path / "b.jsonl", *shared, *own, "--complete", "continue") == 0
    retrieval = given.pop("retrieval")
    assert retrieval["band"] == [0.3, 0.6]
    assert retrieval["embeddings"] == Found.identity
    assert given == {
        "low": 0.3, "high": 0.6, "k": 3, "index": "hnsw", "way": "continue", "masking": Masking(0.4, 2, 7),
        "max_similarity": 0.8, "differing": Differing(), "max_new_tokens": 48, "similarity": "an encoder",
        "segmenter": None, "strict": True, "overwrite": False, "block_size": 64, "made_of": str(rows),
    }  # fmt: skip


class Found:
    """Embeddings of one image, as far as a command looks at them."""

    identity = "found"

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("reject", "--image", "corrupt:crip"), "did you mean 'crop'?"),
        (("reject", "--image", "corrupt:swap"), "say --image other"),
        (("reject", "--image", "corrupt:{kind: crop"), "cannot be read"),
        (("reject", "--image", "own"), "none, other or corrupt:KIND"),
        (("reject", "--contrast"), "none to give as contrast_image"),
        (("reject", "--max-overlap", "2"), "max_overlap"),
        (("reject", "--output", "out.txt"), "not this"),
        (("reject", "--model", "./no_model"), "./no_model"),
        (("reject", "--text-model", "./no_encoder"), "no text encoder ./no_encoder"),
        (("retrieve", "--mask-share", "0"), "share of segments"),
        (("retrieve", "--text-model", "./no_encoder"), "no text encoder ./no_encoder"),
        (("retrieve", "--text-model", "./no_encoder"), "or go without, --text-model none: words of content alone"),
        (("retrieve", "--text-model", "none", "--encoder", "./no_model"), "./no_model"),
        (("retrieve", "--text-model", "none", "--images", "./no_images"), "./no_images"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    argv: tuple[str, ...], message: str, rows: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    fixed = (str(rows), "--limit", "2", "--model", "demo-base", "--output", "out.jsonl")
    assert message in refused(capsys, "data", argv[0], *fixed, *argv[1:])


def test_an_output_that_is_there_is_kept(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    arguments = ("data", "reject", str(rows), "--model", "demo-base", "--limit", "4", "--output", str(output))
    assert "is kept" in refused(capsys, *arguments)
    assert output.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments]) == 0
    assert "holds a job with" in refused(capsys, *arguments, "--max-new-tokens", "9")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "options"), [("reject", ("--image", "other")), ("retrieve", RETRIEVE)])
def test_killed_at_a_random_moment_it_ends_the_same(
    command: str, options: tuple[str, ...], rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "killed").mkdir()
    output = tmp_path / "killed" / "out.jsonl"
    fixed = ["--model", "demo-base", "--block-size", "8", "--max-new-tokens", "48", "--output", str(output)]
    argv = ["data", command, str(rows), *fixed, *options]
    work = RowFile(output).work_folder
    seconds = random.SystemRandom().uniform(0, 4)
    kill_amid(["-m", "mllm_align.cli", *argv], lambda: any(work.rglob("block*")), seconds)
    for name in ("killed", "whole"):
        assert main([*argv[: -len(options) - 1], str(tmp_path / name / "out.jsonl"), *options]) == 0
    for file in ("out.jsonl", "out.jsonl.report.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_a_speaker_answers_each_ask_as_if_it_were_alone(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    speaker = ModelSpeaker(model, processor, batch_size=2)
    asks = [
        Ask("What colour is the circle?", (pictures[0],)),
        Ask("Is it?"),
        Ask("What is the small square left of?", (pictures[1],), start="The small"),
        Ask("Is the star red?", (pictures[2],)),
        Ask("How many objects are in the picture?", start="The"),
    ]
    together = speaker(asks, 4)
    assert together == [speaker([ask], 4)[0] for ask in asks]
    assert len(set(together)) > 2
    assert speaker([], 4) == []


def test_a_speaker_is_who_its_weights_say() -> None:
    model, processor = tiny("llava")
    names = {
        ModelSpeaker(model, processor).identity,
        ModelSpeaker(*tiny("llava")).identity,
        ModelSpeaker(*tiny("llava", seed=1)).identity,
    }
    assert len(names) == 2
    adapted = attach_lora(tiny("llava")[0], ModelArguments(use_peft=True, lora_r=2))
    assert ModelSpeaker(adapted, processor).identity not in names
