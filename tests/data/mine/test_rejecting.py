import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from conftest import draw_picture
from mllm_align.data.corrupt import Blank, Crop, DiffusionNoise
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.differing import Differing
from mllm_align.data.mine.rejecting import RejectOptions, make_rejected
from mllm_align.data.mine.speaking import Ask
from runs import assert_same_results, assert_survives_a_kill, start_ranks, wait_for_ranks
from speakers import Scripted

COLOURS = ("red", "green", "blue", "white", "black")


def colour_rows(folder: Path, number: int = 10, name: str = "Bild ü") -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in range(number):
        path = folder / f"{name} {row}.png"
        Image.new("RGB", (8, 8), COLOURS[row % 5]).save(path)
        rows.append(
            {"id": f"é{row}", "image": str(path), "prompt": "Which colour?", "chosen": COLOURS[row % 5], "score": row}
        )
    return rows


def colour_of(image: Image.Image) -> str:
    return {Image.new("RGB", (1, 1), name).getpixel((0, 0)): name for name in COLOURS}[image.getpixel((4, 4))]


def seen(ask: Ask) -> str:
    """The colour that is shown; without a picture the one that most things have."""
    return colour_of(ask.images[0]) if ask.images else "red"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(rows: Any, output: Path, rule: Any = seen, **kwargs: Any) -> tuple[dict[str, Any], Scripted]:
    speaker = Scripted(rule)
    return make_rejected(rows, output, speaker, block_size=4, progress=False, **kwargs), speaker


def test_without_a_picture(tmp_path: Path) -> None:
    report, speaker = make(colour_rows(tmp_path), tmp_path / "out.jsonl")
    assert all(not ask.images for ask in speaker.asked)
    assert (report["rows"], report["kept"], report["filters"]) == (10, 8, {"equal": 2})
    first = read(tmp_path / "out.jsonl")[0]
    assert first == {
        "id": "é1", "image": "Bild ü 1.png", "prompt": "Which colour?", "chosen": "green", "score": 1,
        "rejected": "red", "rejected_by": "scripted", "rejected_on": "none",
    }  # fmt: skip
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text()) == json.loads(json.dumps(report))


def test_on_another_row_s_picture(tmp_path: Path) -> None:
    rows = colour_rows(tmp_path)
    report, _ = make(rows, tmp_path / "out.jsonl", options=RejectOptions(shown="other", contrast=True))
    kept = read(tmp_path / "out.jsonl")
    assert report["kept"] == len(kept)
    assert len(kept) + report["filters"].get("equal", 0) == 10
    assert len(kept) > 5
    by_id = {row["id"]: row for row in rows}
    for row in kept:
        other = by_id[row["rejected_on"].removeprefix("other: ")]
        assert row["rejected"] == other["chosen"] != row["chosen"]
        assert row["contrast_image"] == Path(other["image"]).name
    again, _ = make(rows, tmp_path / "again.jsonl", options=RejectOptions(shown="other", contrast=True))
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    make(rows, tmp_path / "seed.jsonl", options=RejectOptions(shown="other", contrast=True, seed=1))
    assert (tmp_path / "seed.jsonl").read_bytes() != (tmp_path / "out.jsonl").read_bytes()
    assert again == report
    assert len({row["rejected_on"] for row in kept}) > 3  # not the same for all


def test_a_picture_that_cannot_be_read_is_not_shown_to_another_row(tmp_path: Path) -> None:
    rows = colour_rows(tmp_path, 4)
    for row in rows[1:3]:
        Path(row["image"]).unlink()
    report, _ = make(rows, tmp_path / "out.jsonl", options=RejectOptions(shown="other"))
    assert report["kept"] == 2
    assert report["problems"]["missing file"]["rows"] == 2


def test_one_picture_alone_has_no_other(tmp_path: Path) -> None:
    rows = [row | {"image": colour_rows(tmp_path, 1)[0]["image"]} for row in colour_rows(tmp_path, 3)]
    report, _ = make(rows, tmp_path / "out.jsonl", options=RejectOptions(shown="other"))
    assert report["kept"] == 0
    assert report["problems"]["no other picture"]["rows"] == 3


@pytest.mark.parametrize("corruption", [Blank(), Crop(), DiffusionNoise()])
def test_on_a_corrupted_picture_that_can_be_kept(tmp_path: Path, corruption: Any) -> None:
    rows = [
        {"id": str(n), "image": draw_picture(40, 40, (200, 0, 0), n), "prompt": "What?", "chosen": "a disc"}
        for n in range(3)
    ]
    shown: dict[str, bytes] = {}

    def rule(ask: Ask) -> str:
        shown[f"a square {len(shown)}"] = ask.images[0].tobytes()
        return f"a square {len(shown) - 1}"

    options = RejectOptions(shown=corruption, contrast=True, seed=7)
    report, _ = make(rows, tmp_path / "out.jsonl", rule, options=options)
    assert report["shown"] == repr(corruption)
    for row in load_rows(tmp_path / "out.jsonl"):
        assert Image.open(row["contrast_image"]).convert("RGB").tobytes() == shown[row["rejected"]]
        assert Image.open(row["image"]).convert("RGB").tobytes() != shown[row["rejected"]]


def test_what_is_drawn_depends_on_seed_and_id_and_on_no_other_row(tmp_path: Path) -> None:
    picture = draw_picture(20, 20, (200, 0, 0), 0)
    rows = [{"id": str(n), "image": picture, "prompt": "What?", "chosen": "a disc"} for n in range(3)]

    def shown(name: str, rows: list[dict[str, Any]], seed: int) -> list[bytes]:
        options = RejectOptions(shown=DiffusionNoise(), seed=seed)
        _, speaker = make(rows, tmp_path / f"{name}.jsonl", lambda ask: "a square", options=options)
        return [ask.images[0].tobytes() for ask in speaker.asked]

    first = shown("first", rows, 0)
    assert len(set(first)) == 3
    assert shown("again", rows[::-1], 0) == first[::-1]
    assert not set(shown("seed", rows, 1)) & set(first)


def test_what_is_wrong_with_rows_is_counted_and_the_others_are_used(tmp_path: Path) -> None:
    rows = colour_rows(tmp_path, 8)
    Path(rows[0]["image"]).unlink()
    Path(rows[1]["image"]).write_bytes(b"kaputt")
    rows[2]["prompt"] = ""
    rows[3]["id"] = rows[4]["id"]
    rows[6]["image"] = None
    report, _ = make(rows, tmp_path / "out.jsonl", lambda ask: "purple")
    counts = {kind: problem["rows"] for kind, problem in report["problems"].items()}
    assert counts == {
        "missing file": 1, "damaged image": 1, "missing text": 1, "duplicate id": 1, "missing image": 1,
    }  # fmt: skip
    assert report["kept"] == 3
    assert "Bild ü 0.png" in report["problems"]["missing file"]["examples"][0]
    assert [row["score"] for row in read(tmp_path / "out.jsonl")] == [3, 5, 7]


def test_of_rows_with_one_id_the_first_that_can_be_used_is_taken_even_if_it_is_dropped(tmp_path: Path) -> None:
    rows = colour_rows(tmp_path, 8)
    rows[0]["prompt"] = ""
    for row, same in ((1, 0), (3, 2), (5, 4), (7, 4)):
        rows[row]["id"] = rows[same]["id"]
    rows[2] |= {"chosen": "purple"}
    del rows[6]["id"]
    report, _ = make(rows, tmp_path / "out.jsonl", lambda ask: "purple")
    assert report["filters"] == {"equal": 1}
    assert {kind: problem["rows"] for kind, problem in report["problems"].items()} == {
        "missing text": 1, "duplicate id": 3,
    }  # fmt: skip
    assert [row["score"] for row in read(tmp_path / "out.jsonl")] == [1, 4, 6]


def test_rows_without_an_id_are_no_duplicates(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "id"} for row in colour_rows(tmp_path, 4)]
    report, _ = make(rows, tmp_path / "out.jsonl", lambda ask: "purple")
    assert (report["kept"], report["problems"]) == (4, {})


@pytest.mark.parametrize("change", [{"image": "fehlt.png"}, {"prompt": ""}, {"id": "é0"}])
def test_strict_makes_them_errors(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = colour_rows(tmp_path, 3)
    rows[1] |= change
    with pytest.raises(DataError, match="row 1"):
        make(rows, tmp_path / "out.jsonl", strict=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_no_rows_and_nothing_kept(tmp_path: Path, suffix: str) -> None:
    report, speaker = make([], tmp_path / f"none{suffix}")
    assert (report["rows"], report["kept"], speaker.calls) == (0, 0, 0)
    report, _ = make(colour_rows(tmp_path, 2), tmp_path / f"empty{suffix}", lambda ask: "")
    assert (report["kept"], report["filters"]) == (0, {"empty": 2})
    assert (tmp_path / f"empty{suffix}").exists()


def test_parquet_is_read_again(tmp_path: Path) -> None:
    make(colour_rows(tmp_path), tmp_path / "out.parquet")
    rows = load_rows(tmp_path / "out.parquet")
    assert len(rows) == 8
    assert Path(rows[0]["image"]).is_file()


def test_other_filters_ask_nothing_again(tmp_path: Path) -> None:
    rows, output = colour_rows(tmp_path), tmp_path / "out.jsonl"
    make(rows, output, lambda ask: "a red and a green one")
    options = RejectOptions(differing=Differing(closed_words=0, length_ratio=(0, 2)))
    report, speaker = make(rows, output, options=options, overwrite=True)
    assert speaker.calls == 0
    assert report["filters"] == {"length": 10}
    with pytest.raises(FileExistsError, match="other rows"):
        make(rows, output)
    with pytest.raises(ValueError, match="max_new_tokens"):
        make(rows, output, options=RejectOptions(max_new_tokens=7), overwrite=True)
    with pytest.raises(ValueError, match="seed 0, this one has 1"):
        make(rows, output, options=RejectOptions(seed=1), overwrite=True)
    rows[0]["chosen"] = "pink"
    with pytest.raises(
        ValueError, match=r"out.jsonl.work/answers was made from 10 rows, which hold something else now"
    ):
        make(rows, output, overwrite=True)
    with pytest.raises(
        ValueError, match=r"made from 10 rows, this one has 9 rows: remove the folder .*, or name another"
    ):
        make(rows[:9], output, overwrite=True)


class Lengths:
    """A text encoder for which texts of the same length are alike."""

    identity = "lengths"

    def similarities(self, first: list[str], second: list[str]) -> list[float]:
        return [float(len(one) == len(other)) for one, other in zip(first, second, strict=True)]


def test_a_text_encoder_is_one_filter_more(tmp_path: Path) -> None:
    report, _ = make(colour_rows(tmp_path), tmp_path / "out.jsonl", lambda ask: "brown", similarity=Lengths())
    assert report["filters"] == {"similarity": 6}
    at_bound, _ = make(  # the bound itself is too similar
        colour_rows(tmp_path), tmp_path / "bound.jsonl", lambda ask: "brown", similarity=Lengths(),
        options=RejectOptions(max_similarity=0.0),
    )  # fmt: skip
    assert at_bound["filters"] == {"similarity": 10}
    assert {row["chosen"] for row in read(tmp_path / "out.jsonl")} == {"red", "blue"}
    assert report["text_encoder"] == "lengths"


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="a corruption, 'other' or 'none'"):
        RejectOptions(shown="own")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contrast_image"):
        RejectOptions(shown="none", contrast=True)


SLOW = """
import sys, time
from pathlib import Path
from data.mine.test_rejecting import others, seen
def slowly(ask):
    time.sleep({pause})
    return seen(ask)
others(Path(sys.argv[1]), slowly)
"""


def others(folder: Path, rule: Any = seen) -> None:
    """A job of ten blocks."""
    options = RejectOptions(shown="other", contrast=True)
    make(colour_rows(folder / "in", 40), folder / "out.jsonl", rule, options=options)


def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path) -> None:
    assert_survives_a_kill(SLOW.format(pause=0.02), others, "answers", tmp_path)


@pytest.mark.ddp
def test_processes_share_the_work(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SLOW.format(pause=0))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    others(tmp_path / "whole")
    assert_same_results(tmp_path / "both", tmp_path / "whole")


@pytest.mark.parametrize("same", ["copy", "jpeg", "mirror"])
def test_the_same_picture_in_another_file_is_no_other(same: str, tmp_path: Path) -> None:
    rows = colour_rows(tmp_path, 2)
    picture = draw_picture(240, 160, (250, 0, 0), 3)
    name = "copy.jpg" if same == "jpeg" else "copy.png"
    picture.save(tmp_path / "own.png")
    (ImageOps.mirror(picture) if same == "mirror" else picture).save(tmp_path / name)
    rows[0]["image"], rows[1]["image"] = str(tmp_path / "own.png"), str(tmp_path / name)
    report, speaker = make(rows, tmp_path / "out.jsonl", options=RejectOptions(shown="other"))
    assert report["problems"]["no other picture"]["rows"] == 2
    assert not speaker.asked


def test_no_tokens_are_no_answer() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
        RejectOptions(max_new_tokens=0)
