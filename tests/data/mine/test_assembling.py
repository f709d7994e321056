"""The whole way from rows to files: what is written, what is counted, and that a kill changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from counterfactual_world import MINIMAL, ColourEmbedder, FactEmbedder, planted
from mllm_align.data.errors import DataError
from mllm_align.data.images import load_image
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.assembling import CounterfactualOptions, make_counterfactual
from mllm_align.data.schema import parse_row
from mllm_align.data.world import pair_rows
from runs import kill_amid, start_ranks, wait_for_ranks


class Shouter:
    identity = "shouter"

    def __call__(self, asks: Any, max_new_tokens: int) -> list[str]:
        return ["It says " + _short(ask.prompt) for ask in asks]


def _short(prompt: str) -> str:
    return prompt.rsplit("\n", 1)[1].partition(": ")[2].split(" (asked")[0]


def made(rows: Any, output: Path, **changes: Any) -> dict[str, Any]:
    """A report; every pair is hard unless said otherwise."""
    given = {name: changes.pop(name) for name in ("speaker", "strict", "overwrite", "block_size") if name in changes}
    options = CounterfactualOptions(**({"visual_above": -1.0, "semantic_below": 1.0} | changes))
    return make_counterfactual(rows, output, ColourEmbedder(), ColourEmbedder(), options, progress=False, **given)


def sided_rows(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Pairs of the world in files with names that are not ASCII, one question in four about a side."""
    folder.mkdir()
    rows = []
    for number, row in enumerate(pair_rows(count)):
        for column in ("image", "contrast_image"):
            path = folder / f"Bild {number} {column} ü猫.png"
            row[column].save(path)
            row[column] = str(path)
        if row["kind"] == "side":
            row |= {"chosen": f"It is on the {row['chosen']}.", "rejected": f"It is on the {row['rejected']}."}
        rows.append(row)
    return rows


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_planted_pairs_come_out_with_provenance(tmp_path: Path) -> None:
    rows, known = planted(15)
    encoders = FactEmbedder(known, sharp=False), FactEmbedder(known, sharp=True)
    report = make_counterfactual(rows, tmp_path / "pairs.parquet", *encoders, progress=False)
    found: Any = load_rows(tmp_path / "pairs.parquet")
    assert {row["id"] for row in found} == {row["id"] for row in rows if row["truth"] == MINIMAL}
    originals = {row["id"]: row for row in rows}
    for row in found:
        before = originals[row["id"]]
        parsed = parse_row(row)
        assert load_image(parsed.images[0]).tobytes() == before["image"].tobytes()
        assert load_image((parsed.contrast_images or ("",))[0]).tobytes() == before["contrast_image"].tobytes()
        assert (row["prompt"], row["chosen"]) == (before["prompt"], before["chosen"])
        assert (row["made_by"], row["texts_by"], row["made_of"]) == ("pair", "given", row["id"])
        assert row["similarity_visual"] > 0.7
        assert row["similarity_semantic"] < 0.5
        assert row["truth"] == MINIMAL
    assert (report["rows"], report["hard"], report["training"]) == (45, 15, 15)
    assert report["encoders"] == {"look_alike": "facts, coarse", "meaning": "facts, sharp"}
    assert json.loads((tmp_path / "pairs.parquet.report.json").read_text()) == json.loads(json.dumps(report))


def test_flips_validation_and_paths(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder")
    output = tmp_path / "paare ß.jsonl"
    report = made(rows, output, flips=True, num_validation=2, semantic_below=-0.999, unfiltered=("colour",))
    assert report["flips"] == {"possible": 3, "kept": 1, "impossible": {"text names no side": len(rows) - 3}}
    assert (report["training"], report["validation"]) == (2, 2)
    both: Any = [*load_rows(output), *load_rows(tmp_path / "paare ß_validation.jsonl")]
    (flip,) = [row for row in both if row["made_by"] == "flip"]
    assert flip["id"] == f"{flip['made_of']}/flip"
    assert flip["similarity_visual"] is None
    mirrored = ImageOps.mirror(load_image(flip["image"]))
    assert load_image(flip["contrast_image"]).tobytes() == mirrored.tobytes()
    assert {flip["chosen"], flip["rejected"]} == {"It is on the left.", "It is on the right."}
    assert all(Path(row["image"]).parent.name == "Bilder" for row in both)


def test_texts_are_rewritten_and_counted(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder", 8)
    report = made(rows, tmp_path / "out.jsonl", speaker=Shouter(), num_validation=3)
    assert report["rewriting"] == {"speaker": "shouter", "texts": {"rewritten": 8}}
    both: Any = [*load_rows(tmp_path / "out.jsonl"), *load_rows(tmp_path / "out_validation.jsonl")]
    assert len(both) == 8
    assert all(row["chosen"].startswith("It says ") and row["texts_by"] == "shouter" for row in both)


def test_conversations_systems_and_several_turns_stay(tmp_path: Path) -> None:
    rows = pair_rows(2)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello <image>"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Which colour?"},
    ]
    rows[0] |= {"prompt": turns, "chosen": [{"role": "assistant", "content": "red"}]}
    made(rows, tmp_path / "out.parquet")
    found: Any = load_rows(tmp_path / "out.parquet")
    for before, after in zip(rows, found, strict=True):
        first, second = parse_row(before), parse_row(after)
        assert first.messages == second.messages
        assert first.responses == second.responses


def test_every_step_is_counted_by_category(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder", 16)
    swapped = {"image": rows[0]["contrast_image"], "contrast_image": rows[0]["image"]}
    texts = {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    rows += [rows[0] | swapped | texts | {"id": "again"}, rows[1] | {"image": str(tmp_path / "gone.png"), "id": "x"}]
    report = made(rows, tmp_path / "out.jsonl", balance="equal")
    assert report["problems"]["missing file"]["rows"] == 1
    assert (report["rows"], report["usable"], report["duplicates"], report["sampled away"]) == (18, 17, 1, 0)
    assert report["categories"]["existence"] == {"usable": 5, "hard": 5, "training": 4, "validation": 0}


def test_other_options_use_the_same_vectors_and_need_leave_to_overwrite(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder", 8)
    first = made(rows, tmp_path / "out.jsonl")
    assert made(rows, tmp_path / "out.jsonl") == first
    with pytest.raises(FileExistsError, match="other rows"):
        made(rows, tmp_path / "out.jsonl", num_validation=3)
    jobs = files(tmp_path / "out.jsonl.work")
    assert made(rows, tmp_path / "out.jsonl", num_validation=3, overwrite=True)["validation"] == 3
    assert files(tmp_path / "out.jsonl.work") == jobs


def test_an_output_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(FileExistsError):
        made(pair_rows(2), tmp_path / "out.jsonl")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_no_rows_at_all(tmp_path: Path, name: str) -> None:
    report = made([], tmp_path / name, flips=True, balance="equal", num_validation=2)
    assert (report["rows"], report["usable"], report["training"], report["problems"]) == (0, 0, 0, {})
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "change", [{"visual_above": 1.5}, {"semantic_below": -2}, {"balance": "even"}, {"num_validation": -1}]
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        CounterfactualOptions(**change)


SLOW = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import test_assembling as t
from mllm_align.data.loading import load_rows
call = t.ColourEmbedder.__call__
t.ColourEmbedder.__call__ = lambda self, images: (time.sleep(0.05), call(self, images))[1]
rows = load_rows(sys.argv[1])
t.made(rows, Path(sys.argv[2]), block_size=4, flips=True, num_validation=5, balance="original", speaker=t.Shouter())
"""


def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder", 40)
    Image.new("RGB", (3, 3)).save(tmp_path / "Bilder" / "x.png")
    (tmp_path / "Bilder" / "x.png").write_bytes(b"broken")
    rows[7]["image"] = str(tmp_path / "Bilder" / "x.png")
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(tests=str(Path(__file__).parents[2]), here=str(Path(__file__).parent)))
    options = {"block_size": 4, "flips": True, "num_validation": 5, "balance": "original", "speaker": Shouter()}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    report = made(load_rows(source), tmp_path / "whole" / "out.jsonl", **options)
    assert report["problems"]["damaged image"]["rows"] == 1
    target = tmp_path / "killed" / "out.jsonl"
    blocks = target.with_name("out.jsonl.work")
    argv = [str(script), str(source), str(target)]
    kill_amid(argv, lambda: any(blocks.glob("*/block*")), random.Random().uniform(0, 1.2))
    made(load_rows(source), target, **options)
    left = {name: data for name, data in files(tmp_path / "killed").items() if not name.startswith(".")}
    assert left == files(tmp_path / "whole")


RANKS = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import test_assembling as t
from mllm_align.data.loading import load_rows
folder = Path(sys.argv[1])
rows, output = load_rows(folder / "rows.jsonl"), folder / "both" / "out.jsonl"
t.made(rows, output, block_size=2, num_validation=3, speaker=t.Shouter())
"""


@pytest.mark.ddp
def test_processes_share_the_work_and_one_writes(tmp_path: Path) -> None:
    rows = sided_rows(tmp_path / "Bilder", 12)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(tests=str(Path(__file__).parents[2]), here=str(Path(__file__).parent)))
    for name in ("both", "one"):
        (tmp_path / name).mkdir()
    wait_for_ranks(start_ranks(str(script), tmp_path))
    made(load_rows(source), tmp_path / "one" / "out.jsonl", block_size=2, num_validation=3, speaker=Shouter())
    assert files(tmp_path / "both") == files(tmp_path / "one")


def test_another_validation_file_or_report_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    for name in ("out_validation.jsonl", "out.jsonl.report.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match="is kept"):
            made(pair_rows(2), tmp_path / "out.jsonl", num_validation=1)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_either_both_files_are_replaced_or_none(tmp_path: Path) -> None:
    rows = pair_rows(8)
    made(rows, tmp_path / "out.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*.json*") if path.is_file()}
    with pytest.raises(FileExistsError, match="--overwrite"):
        made(rows, tmp_path / "out.jsonl", num_validation=3)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*.json*") if path.is_file()} == before
    made(rows, tmp_path / "out.jsonl", num_validation=3, overwrite=True)
    assert len(load_rows(tmp_path / "out_validation.jsonl")) == 3


def test_its_own_output_again_has_new_measurements(tmp_path: Path) -> None:
    made(pair_rows(4), tmp_path / "first.jsonl")
    old = [
        dict(row) | {"similarity_visual": 9.0, "made_of": "old", "made_by": "old"}
        for row in read(tmp_path / "first.jsonl")
    ]
    made(old, tmp_path / "second.jsonl")
    assert read(tmp_path / "second.jsonl") == read(tmp_path / "first.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in load_rows(path)]


def test_categories_that_are_not_there_are_said(tmp_path: Path) -> None:
    report = made(pair_rows(4), tmp_path / "out.jsonl", unfiltered=("colour", "colur"), flip_categories=("sied",))
    assert {"colur", "sied"} <= set(report["categories not found"])
    with pytest.raises(DataError, match=r"no column 'kidn'.*'kind'"):
        made(pair_rows(4), tmp_path / "other.jsonl", category="kidn")
    assert not (tmp_path / "other.jsonl.work").exists()


def test_copies_and_mirror_images_of_a_picture_are_on_one_side(tmp_path: Path) -> None:
    rows = pair_rows(6)
    for number, row in enumerate(pair_rows(6)):
        again = row | {"id": f"again {number}", "image": row["contrast_image"], "contrast_image": row["image"]}
        again["image"] = ImageOps.mirror(again["image"]) if number % 2 else again["image"].resize((200, 200))
        again["contrast_image"] = again["contrast_image"].rotate(180)
        rows.append(again)
    for seed in range(3):
        made(rows, tmp_path / f"{seed}.jsonl", num_validation=4, seed=seed)
        ids = {row["id"] for row in read(tmp_path / f"{seed}_validation.jsonl")}
        assert len(ids) == 4
        for number in range(6):
            assert (rows[number]["id"] in ids) == (f"again {number}" in ids)
