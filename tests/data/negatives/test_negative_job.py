"""The job and its command: rows in, rows out that SVLC trains on; and how many negatives are false."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align.cli.negatives import KINDS as COMMAND_KINDS
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.negatives import KINDS, NegativeOptions, make_negatives
from mllm_align.data.negatives.known import Known
from mllm_align.data.negatives.making import Edit, select
from mllm_align.data.objects import read_objects
from mllm_align.data.world import Scene, boxes, caption
from mllm_align.objectives import SVLC, NextToken, Weighted
from runs import assert_survives_a_kill, make_trainer, picture
from speakers import Scripted
from world_truth import is_false, row_scenes

CAPTIONS = (
    "A small red cup on the table and a large blue plate.",
    "Two dogs are left of a white cat.",
    "A man riding a horse.",
    "It is there.",
)


def caption_rows(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(10):
        picture(number).save(folder / f"{number}.png")
        text = CAPTIONS[number % 4]
        rows.append(
            {"id": f"é{number}", "image": str(folder / f"{number}.png"), "prompt": "Describe.", "chosen": text}
        )
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(rows: Any, output: Path, **changes: Any) -> dict[str, Any]:
    given = {key: changes.pop(key) for key in ("masker", "speaker", "strict") if key in changes}
    return make_negatives(rows, output, NegativeOptions(**changes), block_size=1, progress=False, **given)


def test_a_caption_becomes_an_object_that_covers_the_picture(tmp_path: Path) -> None:
    report = make(caption_rows(tmp_path), tmp_path / "out.jsonl", positives=1, per_text=3)
    rows = read(tmp_path / "out.jsonl")
    assert (report["rows"], report["kept"], report["filters"]) == (10, 8, {"no negatives": 2})
    for row in rows:
        (entry,) = row["objects"]
        assert (entry["box"], entry["text"]) == ([0, 0, 1, 1], row["chosen"])
        assert 0 < len(entry["negatives"]) <= 3
        assert len(set(entry["negatives"]) - {row["chosen"]}) == len(entry["negatives"])
        assert len(row["negatives_by"][0]) == len(row["negatives_checked"][0]) == len(entry["negatives"])
        assert not any(row["negatives_checked"][0])
        assert len(entry["positives"]) == 1
        assert "positives" not in row
    assert len({kind for row in rows for kind in row["negatives_by"][0]}) > 4
    assert sum(report["negatives"].values()) == sum(len(row["objects"][0]["negatives"]) for row in rows)
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text()) == json.loads(json.dumps(report))
    first = (tmp_path / "out.jsonl").read_bytes()
    make(caption_rows(tmp_path), tmp_path / "again.jsonl", positives=1, per_text=3)
    assert (tmp_path / "again.jsonl").read_bytes() == first
    make(caption_rows(tmp_path)[::-1], tmp_path / "turned.jsonl", positives=1, per_text=3)
    assert read(tmp_path / "turned.jsonl")[::-1] == rows  # of a row by its id, wherever it stands
    make(caption_rows(tmp_path), tmp_path / "seed.jsonl", positives=1, per_text=3, seed=1)
    assert (tmp_path / "seed.jsonl").read_bytes() != first


def named_rows(folder: Path) -> list[dict[str, Any]]:
    rows = caption_rows(folder)[:2]
    rows[0]["objects"] = [
        {"box": [0, 0, 0.4, 0.4], "text": "red cup", "negatives": ["blue plate"]},
        {"box": [0.5, 0.5, 1, 1], "text": "blue cup", "class": "cup"},
        {"box": [0.5, 0.5, 1, 1], "class": "dog"},
    ]
    rows[1]["objects"] = [{"box": [0, 0, 0.4, 0.4], "text": "cat", "class": "cat"}]
    return rows


def test_named_objects_keep_what_they_have(tmp_path: Path) -> None:
    report = make(named_rows(tmp_path), tmp_path / "out.jsonl", per_text=30, exhaustive=True)
    first, second = read(tmp_path / "out.jsonl")
    cup, other, dog = first["objects"]
    assert cup["negatives"][0] == "blue plate"
    assert first["negatives_by"][0][0] == ""
    assert "blue cup" not in cup["negatives"]  # there is one
    assert "red cup" not in other["negatives"]
    for place, entry in enumerate((cup, other)):
        told = zip(entry["negatives"], first["negatives_by"][place], first["negatives_checked"][place], strict=True)
        for text, kind, checked in list(told)[1 - place :]:
            # Of other things than cups the objects say nothing, and they are no classes of the data.
            assert checked == (kind == "colour"), text
    assert "negatives" not in dog
    assert first["negatives_by"][2] == []
    told = dict(zip(second["objects"][0]["negatives"], second["negatives_checked"][0], strict=True))
    assert len(told) == 3
    assert all(checked == (text == "dog") for text, checked in told.items())
    report = make(named_rows(tmp_path), tmp_path / "checked.jsonl", per_text=30, checked_only=True)
    assert report["negatives"] == report["checked"]
    assert report["dropped"]["unchecked"] > 0


def test_objects_keep_their_paraphrases_and_gain_others(tmp_path: Path) -> None:
    """What an object has stays, and is not said again; no text is both true and false of it."""
    rows = caption_rows(tmp_path)[:1]
    named = {"box": [0, 0, 0.4, 0.4], "text": "a large couch"}
    rows[0]["objects"] = [
        named,
        named | {"positives": ["A Large Sofa"], "negatives": ["A Big Couch"]},
        {"box": [0, 0, 0.4, 0.4]},
    ]
    report = make(rows, tmp_path / "out.jsonl", per_text=30, positives=9)
    first, second, bare = read(tmp_path / "out.jsonl")[0]["objects"]
    assert {"a large sofa", "a big couch"} <= set(first["positives"])
    assert second["positives"][0] == "A Large Sofa"
    assert set(second["positives"][1:]) == set(first["positives"]) - {"a large sofa", "a big couch"}
    assert report["positives"] == 2 * len(first["positives"]) - 2
    assert bare == {"box": [0, 0, 0.4, 0.4]}
    assert len(read_objects(read(tmp_path / "out.jsonl")[0]["objects"], 1, "row")) == 3
    # What a model gives as both is no negative.
    speaker = Scripted(lambda ask: "a large couch outside")
    make(rows, tmp_path / "chat.jsonl", kinds=("object",), positives=1, speaker=speaker)
    for each in read(tmp_path / "chat.jsonl")[0]["objects"][:2]:
        assert each["positives"][-1] == "a large couch outside"
        assert "a large couch outside" not in each["negatives"]


def test_what_is_kept_of_proposals() -> None:
    objects = read_objects([{"text": name, "box": [0, 0, 1, 1]} for name in ("red cup", "blue cup")], 1, "row")
    texts = {
        "colour": ["blue cup", "green cup", "Green cup", "yellow cup"],
        "object": ["red fork"],
        "chat": ["red cup"],
    }
    edits = [Edit(text, kind) for kind, own in texts.items() for text in own]
    for most, expected in ((2, {"green cup", "red fork"}), (9, {"green cup", "yellow cup", "red fork"})):
        dropped: Counter[str] = Counter()
        kept = select("red cup", edits, Known(objects), most, Random(1), dropped)
        assert {each.text: each.checked for each in kept} == {text: text != "red fork" for text in expected}
        assert dropped == {"true": 1}
    dropped = Counter()
    kept = select("red cup", edits, Known(objects), 9, Random(1), dropped, checked_only=True, taken=["YELLOW cup"])
    assert ([each.text for each in kept], dropped) == (["green cup"], {"true": 1, "unchecked": 1})


class _Masker:
    identity = "masker"

    def edits(self, texts: Any, rngs: Any, most: int) -> list[list[Edit]]:
        return [[Edit(f"{text} masked", "masked")] for text in texts]


def test_models_are_asked_once_and_other_checks_ask_nothing_again(tmp_path: Path) -> None:
    speaker = Scripted(lambda ask: "A yellow cup, indeed" if "wrong about" in ask.prompt else "There it is")
    rows, models = caption_rows(tmp_path), {"masker": _Masker(), "speaker": speaker}
    report = make(rows, tmp_path / "out.jsonl", kinds=(), positives=2, **models)
    assert set(report["negatives"]) == {"masked", "chat"}
    assert report["kept"] == 10
    assert len(speaker.asked) == 20
    (tmp_path / "out.jsonl").unlink()
    make(rows, tmp_path / "out.jsonl", kinds=(), positives=2, checked_only=True, **models)
    assert len(speaker.asked) == 20
    with pytest.raises(ValueError, match="nothing makes negatives"):
        make(rows, tmp_path / "none.jsonl", kinds=())
    with pytest.raises(ValueError, match="holds a job with kinds"):
        make(rows, tmp_path / "out.jsonl", kinds=("colour",), positives=2, **models)


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = caption_rows(tmp_path)[:2]
    bad = [{"prompt": "x", "chosen": "A red cup"}, {**rows[0], "chosen": None}, rows[1], {"image": 3}]
    report = make([*rows, *bad], tmp_path / "out.jsonl")
    found = {kind: entry["rows"] for kind, entry in report["problems"].items()}
    assert found == {"missing image": 1, "missing text": 1, "duplicate id": 1, "invalid row": 1}
    with pytest.raises(DataError, match="none of its 0 objects has a text"):
        make(rows, tmp_path / "strict.jsonl", column="objects", strict=True)


SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import mllm_align.data.negatives.job as job
import test_negative_job
read = job.read_texts
job.read_texts = lambda *given: (time.sleep(0.2), read(*given))[1]
test_negative_job.make(test_negative_job.caption_rows(Path(sys.argv[1])), Path(sys.argv[1]) / "out.jsonl", positives=1)
"""


def test_a_killed_job_goes_on(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here.parents[1]), here=str(here))
    run = lambda folder: make(caption_rows(folder), folder / "out.jsonl", positives=1)  # noqa: E731
    assert_survives_a_kill(script, run, "negatives", tmp_path)


NUM_SCENES = 300


def scene_rows(scenes: list[Scene], *, named: bool) -> list[dict[str, Any]]:
    rows = []
    for number, scene in enumerate(scenes):
        row: dict[str, Any] = {
            "id": str(number),
            "image": f"{number}.png",
            "chosen": caption(scene),
            "prompt": "What?",
        }
        if named:
            row["objects"] = [
                {"box": box.tolist(), "text": f"{item.size} {item.colour} {item.shape}", "class": item.shape}
                for item, box in zip(scene.items, boxes(scene), strict=True)
            ]
        rows.append(row)
    return rows


@pytest.mark.parametrize("named", [False, True])
def test_on_the_world_negatives_are_false_and_positives_true(tmp_path: Path, named: bool) -> None:
    """By the scenes alone, read by another parser. At least 99 of 100 are false, and all that are said to be so."""
    scenes = row_scenes(NUM_SCENES, 5, "balanced")
    report = make_negatives(
        scene_rows(scenes, named=named),
        tmp_path / "out.jsonl",
        NegativeOptions(column="chosen", per_text=8, positives=3, exhaustive=True),
        progress=False,
    )
    right: Counter[tuple[str, bool]] = Counter()
    total: Counter[tuple[str, bool]] = Counter()
    positives = []
    for row in read(tmp_path / "out.jsonl"):
        scene, whole = scenes[int(row["id"])], row["objects"][-1]
        for text, kind, checked in zip(
            whole["negatives"], row["negatives_by"][-1], row["negatives_checked"][-1], strict=True
        ):
            total[kind, checked] += 1
            right[kind, checked] += is_false(scene, "caption", "", text)
        positives += [(scene, text) for text in whole["positives"]]
    assert {kind for kind, _ in total} == {"colour", "size", "relation", "object", "swap"}
    assert report["kept"] == NUM_SCENES
    assert right.total() / total.total() >= 0.99
    checked = sum(count for (_, told), count in total.items() if told)
    # Of shapes that are in none of the scenes the objects say nothing.
    assert checked / total.total() > 0.85 if named else checked == 0
    assert all(right[each] == total[each] for each in total if each[1])
    assert len(positives) == 3 * NUM_SCENES
    assert all(not is_false(scene, "caption", "", _unframed(text)) for scene, text in positives)


def _unframed(text: str) -> str:
    """As the world says it: its frame and its synonyms undone."""
    plain = re.sub(r"^(In the picture,|The picture shows) ", "", text)
    return plain.replace("little ", "small ").replace("big ", "large ")


def test_a_caption_that_is_wrong_of_its_scene_is_mended_by_some_edits_and_these_are_dropped(tmp_path: Path) -> None:
    scenes = row_scenes(60, 6, "balanced")
    rows = scene_rows(scenes, named=True)
    for row, scene in zip(rows, scenes, strict=True):
        item = scene.items[0]
        row["chosen"] = f"a {item.size} {'red' if item.colour != 'red' else 'blue'} {item.shape}"
        row["truth"] = f"a {item.size} {item.colour} {item.shape}"
    report = make(rows, tmp_path / "out.jsonl", column="chosen", kinds=("colour",), per_text=12)
    assert report["dropped"]["true"] > 5
    assert not any(row["truth"] in row["objects"][-1]["negatives"] for row in read(tmp_path / "out.jsonl"))


def test_svlc_trains_on_what_is_made(tmp_path: Path) -> None:
    make(named_rows(tmp_path) + caption_rows(tmp_path), tmp_path / "out.jsonl", per_text=2, positives=1)
    rows = load_rows(tmp_path / "out.jsonl")
    objective = Weighted((SVLC(dim=8, paraphrase_weight=1.0), 1.0), (NextToken(matched=False), 1.0))
    # All rows in a step: the term is of the paraphrases of several.
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": len(rows)}
    trainer = make_trainer(tmp_path / "run", objective, rows, adapter=None, **settings)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss/svlc/own_negatives" in entry]
    assert len(log) == 2
    for term in ("own_negatives", "paraphrases"):
        assert all(0 < entry[f"loss/svlc/{term}"] < 40 for entry in log)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND_KINDS == KINDS
    path, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in caption_rows(tmp_path)), encoding="utf-8")
    command = ["data", "negatives", str(path), "--output", str(output)]
    assert main([*command, "--kinds", "colour", "count", "--per-text", "2", "--positives"]) == 0
    said = capsys.readouterr().out
    assert "10 rows, 6 kept" in said
    assert "colour: " in said
    assert "10 positives" not in said
    rows = read(output)
    assert {kind for row in rows for kind in row["negatives_by"][0]} == {"colour", "count"}
    assert len(list(load_rows(output))) == 6
    for wrong, message in (
        (["--texts", "capton"], "no column 'capton'"),
        (["--per-text", "0"], "per_text must be at least 1"),
        (["--mlm", str(tmp_path / "no")], "there is no masked language model"),
        (["--chat", "http://localhost:1"], "--chat-model is missing"),
    ):
        other = ["data", "negatives", str(path), "--output", str(tmp_path / "other.jsonl"), *wrong]
        assert main(other) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "other.jsonl").exists()
