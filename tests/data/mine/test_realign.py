from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from data.mine.test_rejecting import COLOURS, Lengths, colour_of, colour_rows, read
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.gallery import Gallery
from mllm_align.data.mine.masking import MASK, Masking
from mllm_align.data.mine.realign import RealignOptions, make_realigned
from mllm_align.data.mine.speaking import Ask
from runs import assert_same_results, assert_survives_a_kill, start_ranks, wait_for_ranks
from speakers import Scripted


class Next:
    """As neighbours the rows behind, up to so many."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size

    def of(self, row: int) -> SimpleNamespace:
        rows = [(row + step) % self.size for step in range(1, self.number + 1)]
        return SimpleNamespace(rows=rows, similarities=[0.9 - 0.1 * step for step in range(len(rows))])


def goes_on(ask: Ask) -> str:
    """Continues "It is <colour> here" by what is shown."""
    return f" {colour_of(ask.images[0])} and small" if ask.start else "It"


def sentences(folder: Path, number: int = 10) -> list[dict[str, Any]]:
    return [row | {"chosen": f"It is {row['chosen']} over here."} for row in colour_rows(folder, number)]


def make(rows: Any, output: Path, rule: Any = goes_on, k: int = 2, **kwargs: Any) -> tuple[dict[str, Any], Scripted]:
    speaker = Scripted(rule)
    options = kwargs.pop("options", RealignOptions(k=k, masking=Masking(0.1)))
    pictures = Gallery(rows, kwargs.pop("others", ()))
    neighbours = kwargs.pop("neighbours", Next(k, max(1, len(pictures))))
    settings = {"retrieval": {"encoder": "next"}, "block_size": 4, "progress": False} | kwargs
    return make_realigned(rows, pictures, neighbours, output, speaker, options, **settings), speaker


@pytest.fixture
def only_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "over" is a segment too; here the colour is masked alone."""
    rule = __import__("mllm_align.data.mine.masking", fromlist=["rule_segments"]).rule_segments
    monkeypatch.setattr("mllm_align.data.mine.realign.rule_segments", lambda text: rule(text)[:1])


@pytest.mark.usefixtures("only_colours")
def test_a_masked_response_is_completed_on_the_next_picture(tmp_path: Path) -> None:
    report, speaker = make(sentences(tmp_path), tmp_path / "out.jsonl")
    kept = read(tmp_path / "out.jsonl")
    assert (report["rows"], report["kept"], report["accepted_at"]) == (10, 10, {"1": 10})
    assert kept[0] == {
        "id": "é0", "image": "Bild ü 0.png", "prompt": "Which colour?", "chosen": "It is red over here.", "score": 0,
        "rejected": "It is green over here.", "contrast_image": "Bild ü 1.png", "contrast_id": "é1",
        "contrast_similarity": 0.9, "contrast_rank": 1, "masked": "It is [MASK] over here.", "masked_by": "rule",
        "text_similarity": None, "text_encoder": "words of content", "rejected_by": "scripted",
    }  # fmt: skip
    assert {ask.start for ask in speaker.asked} == {"It is"}
    assert speaker.calls == 3  # blocks of 4, 4 and 2 rows: all rows of a block at once


@pytest.mark.usefixtures("only_colours")
def test_neighbours_are_tried_in_order_until_one_says_something_else(tmp_path: Path) -> None:
    # Six pictures: red, red, red, green, green, green.
    rows = sentences(tmp_path, 6)
    for number, row in enumerate(rows):
        colour = COLOURS[number // 3]
        Image.new("RGB", (8, 8), colour).save(row["image"])
        row["chosen"] = f"It is {colour} over here."
    report, _ = make(rows, tmp_path / "out.jsonl", neighbours=Next(2, 6))
    kept = read(tmp_path / "out.jsonl")
    assert [(row["score"], row["contrast_rank"], row["contrast_id"]) for row in kept] == [
        (1, 2, "é3"), (2, 1, "é3"), (4, 2, "é0"), (5, 1, "é0"),
    ]  # fmt: skip
    assert report["filters"] == {"too similar": 2}
    assert report["accepted_at"] == {"1": 2, "2": 2}


@pytest.mark.usefixtures("only_colours")
def test_the_paper_s_rule_is_asked_of_the_text_encoder(tmp_path: Path) -> None:
    # "red" has a length of its own; green, white and black, and blue, do not: alike where the length is the same.
    report, _ = make(sentences(tmp_path, 5), tmp_path / "out.jsonl", similarity=Lengths())
    kept = {row["chosen"].split()[2]: row for row in read(tmp_path / "out.jsonl")}
    assert set(kept) == {"red", "green", "blue", "white", "black"}
    assert [kept[colour]["contrast_rank"] for colour in ("green", "white", "black")] == [1, 2, 1]
    assert {row["text_similarity"] for row in kept.values()} == {0.0}
    # The bound itself is too similar.
    bound = RealignOptions(max_similarity=0.0)
    at_bound, _ = make(sentences(tmp_path, 5), tmp_path / "bound.jsonl", similarity=Lengths(), options=bound)
    assert at_bound["kept"] == 0
    assert report["text_encoder"] == "lengths"


def test_what_cannot_be_completed_is_dropped_for_a_reason(tmp_path: Path) -> None:
    rows = sentences(tmp_path, 4)
    rows[1]["chosen"] = "It is that."
    report, _ = make(rows, tmp_path / "out.jsonl", lambda ask: "", neighbours=Next(2, 4))
    assert report["filters"] == {"not completed": 3, "nothing to mask": 1}
    report, _ = make(rows, tmp_path / "none.jsonl", neighbours=Next(0, 4))
    assert report["filters"] == {"no neighbour": 3, "nothing to mask": 1}


def test_an_instructed_model_that_changes_fixed_words_has_failed(tmp_path: Path) -> None:
    def rule(ask: Ask) -> str:
        masked = ask.prompt.splitlines()[-1]
        said = masked.replace(MASK, colour_of(ask.images[0]))
        return said if colour_of(ask.images[0]) != "green" else f"Well, {said}"

    rows = [row | {"chosen": f"{row['chosen']}."} for row in colour_rows(tmp_path, 5)]
    options = RealignOptions(way="instruct", k=1)
    report, _ = make(rows, tmp_path / "out.jsonl", rule, k=1, options=options)
    assert report["filters"] == {"not completed": 1}
    assert {row["chosen"]: row["rejected"] for row in read(tmp_path / "out.jsonl")} == {
        "green.": "blue.", "blue.": "white.", "white.": "black.", "black.": "red.",
    }  # fmt: skip


def test_segments_by_a_model_or_by_rule_where_it_marks_none(tmp_path: Path) -> None:
    segmenter = Scripted(lambda ask: "green" if "green" in ask.prompt else "none of them", "a segmenter")
    report, _ = make(sentences(tmp_path, 5), tmp_path / "out.jsonl", segmenter=segmenter)
    kept = {row["chosen"]: row for row in read(tmp_path / "out.jsonl")}
    assert kept["It is green over here."]["masked_by"] == "a segmenter"
    assert report["segments_by"] == "a segmenter"
    assert report["segments_by_rule"] == sum(row["masked_by"] == "rule" for row in kept.values())


@pytest.mark.usefixtures("only_colours")
def test_further_pictures_can_be_retrieved(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "black").save(tmp_path / "fern ä.png")
    others = [{"id": "fern ä.png", "image": str(tmp_path / "fern ä.png")}]
    report, _ = make(sentences(tmp_path, 1), tmp_path / "out.parquet", k=1, others=others)
    (row,) = load_rows(tmp_path / "out.parquet")
    assert (row["rejected"], row["contrast_id"]) == ("It is black over here.", "fern ä.png")
    assert Path(row["contrast_image"]).is_file()
    assert report["kept"] == 1


@pytest.mark.usefixtures("only_colours")
def test_bad_rows_and_pictures_are_counted_and_passed_over(tmp_path: Path) -> None:
    rows = sentences(tmp_path, 6)
    Path(rows[1]["image"]).unlink()
    Path(rows[2]["image"]).write_bytes(b"kaputt")
    rows[4]["id"] = rows[3]["id"]
    rows[5]["images"] = [rows[5]["image"], rows[5].pop("image")]
    report, _ = make(rows, tmp_path / "out.jsonl", k=3)
    counts = {kind: problem["rows"] for kind, problem in report["problems"].items()}
    assert counts == {"missing file": 1, "damaged image": 1, "duplicate id": 1, "several images": 1}
    assert [(row["score"], row["contrast_rank"]) for row in read(tmp_path / "out.jsonl")] == [(0, 3), (3, 1)]
    with pytest.raises(DataError, match="missing file"):
        make(rows, tmp_path / "strict.jsonl", strict=True)


@pytest.mark.usefixtures("only_colours")
def test_of_rows_with_one_id_the_first_is_taken_even_if_it_is_dropped(tmp_path: Path) -> None:
    rows = sentences(tmp_path, 6)
    rows[1]["chosen"] = "It is that."
    for row, same in ((2, 1), (4, 3)):
        rows[row]["id"] = rows[same]["id"]
    report, _ = make(rows, tmp_path / "out.jsonl")
    assert report["filters"] == {"nothing to mask": 1}
    assert report["problems"]["duplicate id"]["rows"] == 2
    assert [row["score"] for row in read(tmp_path / "out.jsonl")] == [0, 3, 5]


def test_no_rows(tmp_path: Path) -> None:
    report, speaker = make([], tmp_path / "out.jsonl")
    assert (report["rows"], report["kept"], speaker.calls) == (0, 0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"options": RealignOptions(k=3)}, "options"),
        ({"retrieval": {"encoder": "other"}}, "retrieval"),
        ({"similarity": Lengths()}, "text_encoder"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    rows = sentences(tmp_path, 2)
    make(rows, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match=name):
        make(rows, tmp_path / "out.jsonl", **change)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="instruct or continue"):
        RealignOptions(way="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        RealignOptions(max_new_tokens=0)
    with pytest.raises(ValueError, match="at least one neighbour"):
        RealignOptions(k=0)


SLOW = """
import sys, time
from pathlib import Path
from data.mine.test_realign import completed, goes_on
def slowly(ask):
    time.sleep({pause})
    return goes_on(ask)
completed(Path(sys.argv[1]), slowly)
"""


def completed(folder: Path, rule: Any = goes_on) -> None:
    """A job of ten blocks."""
    make(sentences(folder / "in", 40), folder / "out.jsonl", rule)


def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path) -> None:
    assert_survives_a_kill(SLOW.format(pause=0.02), completed, "completed", tmp_path)


@pytest.mark.ddp
def test_processes_share_the_work(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SLOW.format(pause=0))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    completed(tmp_path / "whole")
    assert_same_results(tmp_path / "both", tmp_path / "whole")
