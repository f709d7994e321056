"""CLIP-blind pairs: what a loop in float64 finds, however it is cut or killed; rows that the next step reads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_align.cli import main
from mllm_align.data.blocks import BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.mine import alike_pairs
from mllm_align.data.mine.clip_blind import BlindOptions, mine_blind_pairs
from mllm_align.data.mine.embeddings import Embeddings, embedding_schema
from retrieval_scale import clustered
from runs import assert_same_results, kill_amid, start_ranks, wait_for_ranks

COUNT = 300
LOOSE: dict[str, Any] = {"above": 0.8, "below": 0.4, "tile": 64}


def embeddings_of(folder: Path, vectors: np.ndarray, precision: str = "float32", **columns: list[Any]) -> Embeddings:
    """Of the rows of `rows_of`; block size 70, so that tiles and blocks do not match."""
    settings = {"job": "embed", "dim": vectors.shape[1], "precision": precision, "embedder": folder.name}
    schema = embedding_schema(vectors.shape[1], precision)
    kept = vectors.astype(precision)

    def record(row: int) -> dict[str, Any]:
        own = {"row": row, "id": f"id {row}"} | {name: values[row] for name, values in columns.items()}
        if row % 50 == 9:
            return own | {"problem": f"row {row}: broken"}
        return own | {"digest": row.to_bytes(16, "big"), "embedding": kept[row]}

    job = BlockJob(folder, settings, len(vectors), schema, 70)
    job.run(lambda rows: [record(row) for row in rows], "made", progress=False)
    return Embeddings(folder)


def two_encoders(count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of which some pairs are alike to the first encoder alone, some to both, and some nearly at the bound."""
    rng = np.random.default_rng(0)
    visual, semantic = clustered(count, 48, 1, topics=9), clustered(count, 40, 2, topics=9)
    for row in range(0, count // 2, 3):  # planted, at a cosine around the bound
        other = count - 1 - row
        noise = rng.standard_normal(48)
        noise -= noise @ visual[row] * visual[row]
        cosine = rng.choice([0.79999, 0.80001, 0.9, 0.99])
        visual[other] = cosine * visual[row] + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)
        if row % 2:
            semantic[other] = semantic[row]
    return visual, semantic


def rows_of(folder: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """Rows whose images are as many files."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    rows = []
    for row in range(count):
        path = folder / f"<b>&{row}.png"
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        rows.append({"id": f"id {row}", "image": str(path), "prompt": "What?", "chosen": f"It is {row}."})
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Embeddings, Embeddings]:
    folder = tmp_path_factory.mktemp("blind")
    visual, semantic = two_encoders()
    rows = rows_of(folder / "images")
    return rows, embeddings_of(folder / "a", visual), embeddings_of(folder / "b", semantic, "float16")


def loop(
    a: Embeddings, b: Embeddings, above: float, below: float, per_image: int, repeated: float = 0.95
) -> dict[tuple[int, int], tuple[float, float]]:
    """The definition, one pair at a time."""
    visual, semantic = a.array().astype(np.float64), b.array().astype(np.float64)
    rows = a.rows.tolist()
    later = {
        two
        for one in range(len(rows))
        for two in range(one + 1, len(rows))
        if repeated < 1 and float(semantic[one] @ semantic[two]) > repeated
    }
    left = [place for place in range(len(rows)) if place not in later]
    found: list[tuple[float, int, int, float, float]] = []
    for one in left:
        for two in left:
            alike, same = float(visual[one] @ visual[two]), float(semantic[one] @ semantic[two])
            if one < two and alike > above and same < below:
                found.append((same - alike, rows[one], rows[two], alike, same))
    found.sort()
    of = {row: [pair[1:3] for pair in found if row in pair[1:3]][:per_image] for row in rows}
    return {(i, j): (x, y) for _, i, j, x, y in found if (i, j) in of[i] and (i, j) in of[j]}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mined(path: Path) -> dict[tuple[int, int], tuple[float, float]]:
    return {
        (int(row["made_of"][3:]), int(row["contrast_made_of"][3:])): (
            row["similarity_visual"],
            row["similarity_semantic"],
        )
        for row in read(path)
    }


@pytest.mark.parametrize("per_image", [1, 2, 300])
@pytest.mark.parametrize("tile", [17, 64, 1000])
def test_it_finds_what_the_loop_finds(
    world: Any, tmp_path: Path, per_image: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike_pairs, "STRIP", 500)
    monkeypatch.setattr(alike_pairs, "SETTLED", 7)
    output = tmp_path / "out.jsonl"
    options = BlindOptions(above=0.8, below=0.4, per_image=per_image, tile=tile)
    report = mine_blind_pairs(*world, output, options, progress=False)
    expected = loop(*world[1:], 0.8, 0.4, per_image)
    found = mined(output)
    assert list(found) == list(expected)  # the largest gap first
    assert np.allclose(list(found.values()), list(expected.values()), atol=1e-5)
    assert len(expected) > 10
    assert report["pairs"] == len(expected)
    everything = loop(*world[1:], 0.8, 2, COUNT)
    assert (report["alike"], report["blind"]) == (len(everything), len(loop(*world[1:], 0.8, 0.4, COUNT)))
    assert report["distinct"] == 294
    assert report["compared"] == 294 - report["repeated in meaning"] < 294


def test_images_that_come_twice_may_take_part(world: Any, tmp_path: Path) -> None:
    options = BlindOptions(**LOOSE, repeated_above=1, per_image=300)
    report = mine_blind_pairs(*world, tmp_path / "out.jsonl", options, progress=False)
    assert mined(tmp_path / "out.jsonl").keys() == loop(*world[1:], 0.8, 0.4, 300, 1).keys()
    assert report["compared"] == 294


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_finds_most_and_says_how_many(world: Any, tmp_path: Path, kind: str) -> None:
    exact = loop(*world[1:], 0.8, 0.4, 3)
    options = BlindOptions(**LOOSE, per_image=3, index=kind)
    report = mine_blind_pairs(*world, tmp_path / "out.jsonl", options, progress=False)
    found = mined(tmp_path / "out.jsonl")
    assert len(found.keys() & exact.keys()) > 0.9 * len(exact)
    recall = report["recall of alike pairs"]
    assert recall["images"] == report["compared"]
    assert recall["pairs"] == len(loop(*world[1:], 0.8, 2, COUNT))  # every image was compared with all
    assert 0.9 < recall["recall"] == recall["found"] / recall["pairs"] <= 1


def test_kin_make_no_pair(tmp_path: Path) -> None:
    visual, semantic = two_encoders()
    groups = ["one" if row in (0, COUNT - 1) else None for row in range(COUNT)]
    sides = [
        embeddings_of(tmp_path / name, vectors, group=groups) for name, vectors in (("a", visual), ("b", semantic))
    ]
    expected = loop(sides[0], sides[1], 0.5, 0.4, COUNT)
    assert (0, COUNT - 1) in expected
    options = BlindOptions(above=0.5, below=0.4, per_image=COUNT)
    mine_blind_pairs(rows_of(tmp_path / "images"), *sides, tmp_path / "out.jsonl", options, progress=False)
    assert mined(tmp_path / "out.jsonl").keys() == expected.keys() - {(0, COUNT - 1)}


def test_rows_say_where_they_are_from_and_are_limited(world: Any, tmp_path: Path) -> None:
    options = BlindOptions(**LOOSE, limit=3)
    report = mine_blind_pairs(*world, tmp_path / "out.jsonl", options, progress=False)
    rows = read(tmp_path / "out.jsonl")
    assert (len(rows), report["pairs"]) == (3, 3)
    assert report["best"] > 3
    first, second = (int(rows[0][name][3:]) for name in ("made_of", "contrast_made_of"))
    assert rows[0] | {"image": "", "contrast_image": ""} == {
        "id": f"id {first} | id {second}",
        "source": "clip-blind",
        "image": "",
        "contrast_image": "",
        "prompt": "What?",
        "chosen": f"It is {first}.",
        "rejected": f"It is {second}.",
        "similarity_visual": rows[0]["similarity_visual"],
        "similarity_semantic": rows[0]["similarity_semantic"],
        "made_by": "clip-blind",
        "made_of": f"id {first}",
        "contrast_made_of": f"id {second}",
        "encoder_visual": "a",
        "encoder_semantic": "b",
    }
    assert Image.open(tmp_path / rows[0]["image"]).size == (8, 8)
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["bounds"] == {"above": 0.8, "below": 0.4}


def test_responses_are_given_only_to_the_same_question(world: Any, tmp_path: Path) -> None:
    rows, *sides = world
    asked = [row | {"prompt": f"What, {number}?", "caption": f"a {number}"} for number, row in enumerate(rows)]
    options = BlindOptions(**LOOSE, limit=4)
    report = mine_blind_pairs(asked, *sides, tmp_path / "none.jsonl", options, progress=False)
    assert report["with texts"] == 0
    assert all(row["prompt"].startswith("What, ") and "chosen" not in row for row in read(tmp_path / "none.jsonl"))
    given = {"prompt": "Describe it.", "texts": "caption"}
    report = mine_blind_pairs(asked, *sides, tmp_path / "captions.jsonl", options, progress=False, **given)
    assert report["with texts"] == 4
    for row in read(tmp_path / "captions.jsonl"):
        assert row["prompt"] == "Describe it."
        assert [row["chosen"], row["rejected"]] == [f"a {row[name][3:]}" for name in ("made_of", "contrast_made_of")]


def test_bounds_by_share_are_quantiles_of_all_pairs(world: Any, tmp_path: Path) -> None:
    options = BlindOptions(above_share=0.01, below_share=0.5, tile=64, repeated_above=1)
    report = mine_blind_pairs(*world, tmp_path / "out.jsonl", options, progress=False)
    for side, share in ((world[1], 0.99), (world[2], 0.5)):
        vectors = side.array().astype(np.float64)
        cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        bound = report["bounds"]["above" if share == 0.99 else "below"]
        assert abs(bound - np.quantile(cosines, share)) < 1e-4
    assert report["share above"] == pytest.approx(0.01, abs=1e-3)


def test_benchmark_images_and_repeated_looks_take_no_part(world: Any, tmp_path: Path) -> None:
    rows, *sides = world
    options = BlindOptions(**LOOSE, per_image=300)
    mine_blind_pairs(*world, tmp_path / "all.jsonl", options, progress=False)
    pairs = mined(tmp_path / "all.jsonl")
    (shown, other), *_ = pairs
    bench = tmp_path / "bench"
    bench.mkdir()
    # Enlarged and mirrored, as another collection may hold it.
    Image.open(rows[shown]["image"]).resize((64, 64), Image.Resampling.NEAREST).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT
    ).save(bench / "1.png")
    report = mine_blind_pairs(*world, tmp_path / "out.jsonl", options, exclude=[bench], progress=False)
    assert report["excluded"] == 1
    assert mined(tmp_path / "out.jsonl").keys() == {pair for pair in pairs if shown not in pair}
    copied = [row | {"image": rows[shown]["image"]} if number == other else row for number, row in enumerate(rows)]
    looked = BlindOptions(**LOOSE, per_image=300, repeated_looks=True)
    report = mine_blind_pairs(copied, *sides, tmp_path / "looked.jsonl", looked, progress=False)
    assert report["repeated to the eye"] == 1
    assert not any(other in pair for pair in mined(tmp_path / "looked.jsonl"))
    with pytest.raises(DataError, match="there is no folder"):
        mine_blind_pairs(*world, tmp_path / "x.jsonl", options, exclude=[tmp_path / "none"], progress=False)


def test_what_cannot_be_asked(world: Any, tmp_path: Path) -> None:
    rows, a, b = world
    for wrong, text in (
        ({"above": 1.5}, "above is a cosine"),
        ({"below": -2}, "below is a cosine"),
        ({"below": 0.96}, "no pair of them is left"),
        ({"index": "flat"}, "exact, ivf, hnsw"),
        ({"per_image": 0}, "per_image must be at least 1"),
        ({"tile": 0}, "tile must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            BlindOptions(**wrong)
    with pytest.raises(DataError, match="which are not those 299 images"):
        mine_blind_pairs(rows[1:], a, b, tmp_path / "a.jsonl", progress=False)
    visual, _ = two_encoders()
    fewer = embeddings_of(tmp_path / "fewer", visual[:100])
    with pytest.raises(DataError, match="fewer holds vectors of 100 rows"):
        mine_blind_pairs(rows, a, fewer, tmp_path / "b.jsonl", progress=False)
    nameless = [{"image": row["image"]} for row in rows]
    with pytest.raises(DataError, match="a holds vectors of 300 rows, which are not those 300 images"):
        mine_blind_pairs(nameless, a, b, tmp_path / "b.jsonl", progress=False)
    digests = [(row if row != 5 else 999).to_bytes(16, "big") for row in range(COUNT)]
    schema = embedding_schema(48, "float32")
    records = [
        {"row": row, "id": f"id {row}", "digest": digests[row], "embedding": visual[row]} for row in range(COUNT)
    ]
    job = BlockJob(tmp_path / "newer", {"job": "embed", "dim": 48, "precision": "float32"}, COUNT, schema)
    job.run(lambda numbers: [records[row] for row in numbers], "made", progress=False)
    with pytest.raises(DataError, match="row 5 shows other pixels"):
        mine_blind_pairs(rows, a, Embeddings(tmp_path / "newer"), tmp_path / "c.jsonl", progress=False)
    with pytest.raises(ValueError, match="too small a share to be told"):
        mine_blind_pairs(*world, tmp_path / "d.jsonl", BlindOptions(above_share=1e-5), progress=False)
    with pytest.raises(ValueError, match="above_share is a share"):
        mine_blind_pairs(*world, tmp_path / "e.jsonl", BlindOptions(above_share=2), progress=False)
    same = BlindOptions(repeated_above=-1, below=-1)
    with pytest.raises(DataError, match=r"1 of 300 images are left .* 294 are different .* 293 in meaning"):
        mine_blind_pairs(*world, tmp_path / "same.jsonl", same, progress=False)
    (tmp_path / "f.jsonl").write_text("mine\n")
    with pytest.raises(FileExistsError, match="--overwrite"):
        mine_blind_pairs(*world, tmp_path / "f.jsonl", progress=False)
    mine_blind_pairs(*world, tmp_path / "g.jsonl", BlindOptions(**LOOSE), progress=False)
    with pytest.raises(ValueError, match=r"below 0.4, this one has 0.3"):
        mine_blind_pairs(*world, tmp_path / "g.jsonl", BlindOptions(**LOOSE | {"below": 0.3}), progress=False)


JOB = """
import json, sys, time
from pathlib import Path
from mllm_align.data.mine import blind_search
from mllm_align.data.mine.clip_blind import BlindOptions, mine_blind_pairs
from mllm_align.data.mine.embeddings import Embeddings
work = blind_search._Work.__call__
def slowly(self, units):
    time.sleep({pause})
    return work(self, units)
blind_search._Work.__call__ = slowly
rows = json.loads(Path({rows!r}).read_text())
folder = Path(sys.argv[1])
mine_blind_pairs(rows, Embeddings({a!r}), Embeddings({b!r}), folder / "out.jsonl",
    BlindOptions(above=0.8, below=0.4, tile=64), progress=False)
"""


def job_of(world: Any, folder: Path, pause: float) -> Path:
    rows, a, b = world
    (folder / "rows.json").write_text(json.dumps(rows))
    script = folder / "job.py"
    script.write_text(JOB.format(pause=pause, rows=str(folder / "rows.json"), a=str(a.folder), b=str(b.folder)))
    return script


def finish(world: Any, folder: Path) -> None:
    mine_blind_pairs(*world, folder / "out.jsonl", BlindOptions(**LOOSE), progress=False)


def test_killed_at_a_random_moment_it_ends_the_same(world: Any, tmp_path: Path) -> None:
    script, killed, whole = job_of(world, tmp_path, 0.1), tmp_path / "killed", tmp_path / "whole"
    blocks = killed / "out.jsonl.work" / "pairs"
    kill_amid([str(script), str(killed)], lambda: any(blocks.glob("block*")), random.Random().uniform(0, 0.8))
    assert 0 < len(list(blocks.glob("block*"))) < 15
    assert not (killed / "out.jsonl").exists()
    for folder in (killed, whole):
        finish(world, folder)
    assert_same_results(killed, whole)
    assert (killed / "out.html").read_bytes() == (whole / "out.html").read_bytes()


@pytest.mark.ddp
def test_two_processes_give_the_same(world: Any, tmp_path: Path) -> None:
    wait_for_ranks(start_ranks(str(job_of(world, tmp_path, 0)), tmp_path / "both"))
    finish(world, tmp_path / "whole")
    assert_same_results(tmp_path / "both", tmp_path / "whole")
    assert (tmp_path / "both" / "out.html").read_bytes() == (tmp_path / "whole" / "out.html").read_bytes()


def test_pairs_become_mmvp_questions_and_counterfactual_data(world: Any, tmp_path: Path) -> None:
    mine_blind_pairs(*world, tmp_path / "out.jsonl", BlindOptions(**LOOSE, limit=12), progress=False)
    assert main(["eval", "pairs", str(tmp_path / "out.jsonl"), "--output", str(tmp_path / "bench")]) == 0
    table = (tmp_path / "bench" / "mmvp" / "Questions.csv").read_text().splitlines()
    assert len(table) == 1 + 24
    encoders = ["--look-alike", "demo-base", "--meaning", "demo-base", "--above", "-1", "--below", "1"]
    again = tmp_path / "again.jsonl"
    assert main(["data", "counterfactual", str(tmp_path / "out.jsonl"), "--output", str(again), *encoders]) == 0
    assert [row["made_of"] for row in read(again)] == [row["id"] for row in read(tmp_path / "out.jsonl")]
