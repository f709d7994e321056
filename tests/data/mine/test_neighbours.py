"""Neighbours: what a loop in float64 finds, within the band, without copies and kin, whatever happens to the job."""

from __future__ import annotations

import hashlib
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mllm_align.demo
from mllm_align.data.blocks import BlockJob
from mllm_align.data.mine import band
from mllm_align.data.mine.embed import Embeddings, ImageEmbedder, embed_images
from mllm_align.data.mine.embeddings import embedding_schema
from mllm_align.data.mine.index import build_index
from mllm_align.data.mine.neighbours import Neighbours, similar_images
from mllm_align.data.world import iter_pairs, render
from retrieval_scale import clustered
from runs import kill_amid, start_ranks, wait_for_ranks

COUNT, DIM = 600, 24
DEMO_BASE = Path(mllm_align.demo.__file__).parent / "base"


def made(folder: Path, vectors: np.ndarray, *, groups: int = 40, block_size: int = 100) -> Embeddings:
    """Embeddings without images: some rows are copies of others, some cannot be read, some share id or group."""

    def record(row: int) -> dict[str, Any]:
        own: dict[str, Any] = {"row": row, "id": f"id {row // 2 if row < 40 else row}", "key": f"{row}.png"}
        own["group"] = None if row % 3 else f"g{row % groups}"
        if row % 50 == 9:
            return own | {"problem": f"row {row}: broken"}
        if row % 50 == 11:
            return own | {"same_as": row - 1}
        copied = row - 5 if row % 50 == 13 else row
        return own | {"digest": copied.to_bytes(16, "big"), "embedding": vectors[copied]}

    return written(folder, [record(row) for row in range(len(vectors))], vectors.shape[1], block_size)


def written(folder: Path, records: list[dict[str, Any]], dim: int, block_size: int = 100) -> Embeddings:
    settings = {"job": "embed", "dim": dim, "precision": "float32", "seed": 0}
    job = BlockJob(folder, settings, len(records), embedding_schema(dim, "float32"), block_size)
    job.run(lambda rows: [records[row] for row in rows], "made", progress=False)
    return Embeddings(folder)


def distinct(folder: Path, vectors: Any, **columns: list[str | None]) -> Embeddings:
    """Embeddings of as many different images, with labels."""
    records: list[dict[str, Any]] = [
        {"row": row, "digest": row.to_bytes(16, "big"), "embedding": vector}
        | {name: values[row] for name, values in columns.items()}
        for row, vector in enumerate(np.array(vectors, np.float32))
    ]
    return written(folder, records, len(vectors[0]))


def vectors_of(count: int = COUNT, dim: int = DIM) -> np.ndarray:
    found = clustered(count, dim, seed=1, topics=20)
    found[300:310] = found[300]  # other pixels, the same vector
    return found


def loop(embeddings: Embeddings, k: int, low: float, high: float) -> dict[int, list[tuple[int, float]]]:
    """The definition, one pair at a time."""
    vectors = embeddings.array().astype(np.float64)
    ids, groups = embeddings.labels("id"), embeddings.labels("group")
    result = {}
    for one, row in enumerate(embeddings.rows):
        found = []
        for other, candidate in enumerate(embeddings.rows):
            similarity = float((vectors[one] * vectors[other]).sum())
            kin = ids[row] == ids[candidate] or (groups[row] >= 0 and groups[row] == groups[candidate])
            if one != other and not kin and low <= similarity <= high:
                found.append((int(candidate), similarity))
        result[int(row)] = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]
    return result


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return made(tmp_path_factory.mktemp("embeddings"), vectors_of())


@pytest.mark.parametrize(
    ("k", "low", "high"), [(10, -1, 0.99), (5, 0.3, 0.6), (3, -0.2, 0.1), (700, 0.2, 1), (4, 0, 2)]
)
def test_an_exact_index_finds_what_the_loop_finds(
    embeddings: Embeddings, tmp_path: Path, k: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "HELD", 3000)
    found = similar_images(embeddings, tmp_path, k=k, low=low, high=high, index="exact", progress=False)
    expected = loop(embeddings, k, low, high)
    records = list(found.records())
    assert [record["row"] for record in records] == embeddings.rows.tolist()
    for record in records:
        pairs = expected[record["row"]]
        assert record["neighbours"] == [row for row, _ in pairs]
        assert np.allclose(record["similarities"], [similarity for _, similarity in pairs], atol=1e-14, rtol=0)
        assert (record["problem"] is None) == bool(pairs)
    assert any(expected.values())


def test_every_row_is_answered_for_the_image_that_it_shows(embeddings: Embeddings, tmp_path: Path) -> None:
    found = similar_images(embeddings, tmp_path, k=3, progress=False)
    for row in (8, 10, 300, 599, 0):
        assert len(found.of(row).rows) == 3
        assert set(found.of(row).rows) <= set(embeddings.rows)
    assert np.array_equal(found.of(11).rows, found.of(10).rows)  # the same file
    assert np.array_equal(found.of(13).similarities, found.of(8).similarities)  # the same pixels
    assert len(found.of(9).rows) == len(found.of(9).similarities) == 0
    again = Neighbours(embeddings, tmp_path)
    assert np.array_equal(again.of(42).rows, found.of(42).rows)
    assert "neighbours each; similarity of the nearest" in found.summary()


def test_what_is_too_similar_is_counted_and_nothing_left_is_told(embeddings: Embeddings, tmp_path: Path) -> None:
    found = similar_images(embeddings, tmp_path / "a", k=3, low=0.98, high=0.99, progress=False)
    records = {record["row"]: record for record in found.records()}
    copies = sum(1 for row in range(300, 310) if row in records)
    assert records[300]["too_similar"] == copies - 1
    assert records[300]["problem"].startswith(
        f"row 300: no image within 0.98 to 0.99: {copies - 1} are above, the next"
    )
    assert f"{len(records)} have none" in found.summary()


HALVES = [[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, 0.5], [0, 1, 0, 0]]  # cosines .5, two others


@pytest.mark.parametrize(
    ("low", "high", "expected", "too_similar"),
    [
        (0.5, 0.5, [[1, 2], [0, 2, 3], [0, 1], [1]], [0, 0, 0, 0]),
        (np.nextafter(0.5, 1), 0.9, [[], [], [], []], [0, 0, 0, 0]),
        (-0.5, np.nextafter(0.5, 0), [[3], [], [3], [0, 2]], [2, 3, 2, 1]),
        (np.nextafter(-0.5, 0), np.nextafter(0.5, 0), [[3], [], [], [0]], [2, 3, 2, 1]),
    ],
)
def test_both_ends_of_the_band_are_within_it(
    low: float, high: float, expected: list[list[int]], too_similar: list[int], tmp_path: Path
) -> None:
    embeddings = distinct(tmp_path / "in", HALVES)
    found = similar_images(embeddings, tmp_path / "out", low=low, high=high, index="exact", progress=False)
    records = list(found.records())
    assert [record["neighbours"] for record in records] == expected
    assert [record["too_similar"] for record in records] == too_similar
    assert [record["problem"] is None for record in records] == [bool(neighbours) for neighbours in expected]


def test_rounding_takes_no_copy_and_no_opposite_out_of_the_whole_band(tmp_path: Path) -> None:
    embeddings = distinct(tmp_path / "in", [[0.6, 0.8], [0.6, 0.8], [-0.6, -0.8]])
    found = similar_images(embeddings, tmp_path / "out", low=-1, high=1, index="exact", progress=False)
    assert found.of(0).rows.tolist() == [1, 2]
    assert found.of(0).similarities[0] > 1
    assert found.of(0).similarities[1] < -1


@pytest.mark.parametrize("low", [0.5, -1.0])
@pytest.mark.parametrize("column", ["id", "group"])
def test_one_behind_many_kin_at_the_lower_end_is_found(low: float, column: str, tmp_path: Path) -> None:
    """More of them than candidates are looked at first."""
    many = band.MORE + 10
    vectors = [HALVES[0], *[HALVES[1]] * (many + 2)]
    labels: list[str | None] = [*["kin"] * (many + 1), None, "other"]
    found = similar_images(
        distinct(tmp_path / "in", vectors, **{column: labels}), tmp_path / "out",
        k=1, low=low, high=0.9, index="exact", progress=False,
    )  # fmt: skip
    assert found.of(0).rows.tolist() == [many + 1]


def test_rows_without_a_label_are_not_kin(tmp_path: Path) -> None:
    embeddings = distinct(tmp_path / "in", HALVES, id=[None] * 4, group=["a", "a", None, None])
    found = similar_images(embeddings, tmp_path / "out", low=0.5, index="exact", progress=False)
    assert [record["neighbours"] for record in found.records()] == [[2], [2, 3], [0, 1], [1]]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_other_indices_find_most_of_them(kind: str, embeddings: Embeddings, tmp_path: Path) -> None:
    exact = similar_images(embeddings, tmp_path / "exact", k=5, index="exact", progress=False)
    found = similar_images(embeddings, tmp_path / kind, k=5, index=kind, progress=False)
    pairs = list(zip(exact.records(), found.records(), strict=True))
    shared = [len(set(one["neighbours"]) & set(other["neighbours"])) for one, other in pairs]
    assert sum(shared) >= 0.97 * 5 * len(embeddings)
    built = similar_images(embeddings, tmp_path / "given", k=5, index=build_index(embeddings, kind), progress=False)
    assert [record["neighbours"] for record in built.records()] == [other["neighbours"] for _, other in pairs]


def test_what_cannot_be_asked(embeddings: Embeddings, tmp_path: Path) -> None:
    for wrong in ({"k": 0}, {"low": 0.5, "high": 0.4}, {"low": -2}):
        with pytest.raises(ValueError, match="there can be none"):
            similar_images(embeddings, tmp_path / "out", progress=False, **wrong)
    with pytest.raises(ValueError, match="build it of these"):
        similar_images(embeddings, tmp_path / "out", index=build_index([vectors_of()]), progress=False)
    similar_images(embeddings, tmp_path / "same", k=3, progress=False)
    with pytest.raises(ValueError, match="k 3, this one has 4"):
        similar_images(embeddings, tmp_path / "same", k=4, progress=False)
    with pytest.raises(ValueError, match="auto, exact, ivf, hnsw"):
        similar_images(embeddings, tmp_path / "kind", index="flat", progress=False)


def test_one_image_has_no_neighbour_and_none_is_an_error(tmp_path: Path) -> None:
    one = made(tmp_path / "one", vectors_of()[:1])
    assert "1 have none, first: row 0: no image" in similar_images(one, tmp_path / "few", progress=False).summary()
    settings = {"job": "embed", "dim": DIM, "precision": "float32"}
    job = BlockJob(tmp_path / "none", settings, 1, embedding_schema(DIM, "float32"))
    job.run(lambda rows: [{"row": 0, "problem": "row 0: broken"}], "made", progress=False)
    with pytest.raises(ValueError, match=r"no image that could be used.*row 0: broken"):
        similar_images(Embeddings(tmp_path / "none"), tmp_path / "out", progress=False)


JOB = """
import sys, time
from pathlib import Path
from mllm_align.data.mine import band
from mllm_align.data.mine.embeddings import Embeddings
from mllm_align.data.mine.neighbours import similar_images
work = band.BandSearch.__call__
def slowly(self, rows):
    time.sleep({pause})
    return work(self, rows)
band.BandSearch.__call__ = slowly
similar_images(Embeddings({folder!r}), sys.argv[1], k=4, index="hnsw", progress=False)
"""


def test_killed_at_a_random_moment_it_ends_the_same(embeddings: Embeddings, tmp_path: Path) -> None:
    similar_images(embeddings, tmp_path / "whole", k=4, index="hnsw", progress=False)
    script = tmp_path / "job.py"
    script.write_text(JOB.format(folder=str(embeddings.folder), pause=0.15))
    killed = tmp_path / "killed"
    kill_amid([str(script), str(killed)], killed.exists, random.Random().uniform(0, 1))
    similar_images(embeddings, killed, k=4, index="hnsw", progress=False)
    assert digests(killed) == digests(tmp_path / "whole")


@pytest.mark.ddp
def test_two_processes_give_the_same(embeddings: Embeddings, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB.format(folder=str(embeddings.folder), pause=0))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    similar_images(embeddings, tmp_path / "whole", k=4, index="hnsw", progress=False)
    assert digests(tmp_path / "both") == digests(tmp_path / "whole")


def test_on_the_world_pictures_are_of_the_band_that_was_asked_for(tmp_path: Path) -> None:
    """By the demo base's own tower: similarities taken from pixels anew, and nothing better left out."""
    pairs = list(islice(iter_pairs(), 120))
    scenes = [scene for pair in pairs for scene in pair.scenes]
    pictures: list[Image.Image] = [render(scene) for scene in scenes]
    embedder = ImageEmbedder(DEMO_BASE, batch_size=16)
    rows = [{"image": picture, "pair": number // 2} for number, picture in enumerate(pictures)]
    embeddings = embed_images(rows, embedder, tmp_path / "embeddings", group="pair", progress=False)
    vectors = embedder(pictures).astype(np.float64)
    similarities = vectors @ vectors.T
    for low, high in ((-1.0, 0.99), (0.8, 0.9)):
        found = similar_images(embeddings, tmp_path / f"{low}", k=5, low=low, high=high, progress=False)
        for record in found.records():
            row, neighbours = record["row"], np.array(record["neighbours"], int)
            own = similarities[row, neighbours]
            assert np.abs(own - record["similarities"]).max() < 1e-5
            assert ((own > low - 1e-5) & (own < high + 1e-5)).all()
            fits = (similarities[row] > low + 1e-5) & (similarities[row] < high - 1e-5)
            fits[[row, row ^ 1]] = False  # itself, and the other of its pair
            left = fits & ~np.isin(np.arange(len(rows)), neighbours)
            assert not left.any() or similarities[row, left].max() < own.min() + 1e-5
    # And they are like what they were found for.
    shapes = [set(scene.shapes) for scene in scenes]
    nearest = similar_images(embeddings, tmp_path / "-1.0", k=5, progress=False)
    shared = np.array([[len(one & two) for two in shapes] for one in shapes], dtype=float)
    others = ~np.kron(np.eye(len(rows) // 2, dtype=bool), np.ones((2, 2), dtype=bool))
    found_shared = [shared[row, nearest.of(row).rows[0]] for row in range(len(rows))]
    by_chance = [shared[row, others[row]].mean() for row in range(len(rows))]
    gain = np.subtract(found_shared, by_chance)
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
