"""Retrieval: ALBEF's ranking as a loop, ties, and matrices from files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mllm_align.cli import main
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.retrieval import COCO_RETRIEVAL, FLICKR30K, IMAGES, official_hits, strict_hits
from mllm_align_eval.matrices import read_matrix, rows_of
from mllm_align_eval.scoring import measures_of, questions_of

NO_PICTURES = PictureFolder(None, IMAGES["flickr30k"])
NUM_IMAGES = 14
NUM_TEXTS = 5 * NUM_IMAGES


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "flickr30k"
    folder.mkdir()
    rows = [
        {"image": f"flickr30k-images/{n}.jpg", "caption": [f"caption {n} {k}" for k in range(6 if n == 3 else 5)]}
        for n in range(NUM_IMAGES)
    ]
    (folder / "flickr30k_test.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def items(folder):
    return FLICKR30K.read(folder, NO_PICTURES)


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def owners():
    return [n for n in range(NUM_IMAGES) for _ in range(5)]


def albef(i2t, t2i):
    """The ranks by argsort, read backwards."""
    found, image_of = {}, owners()
    ranks = []
    for image, row in enumerate(i2t):
        order = np.argsort(row)[::-1].tolist()
        ranks.append(min(order.index(text) for text, owner in enumerate(image_of) if owner == image))
    back = [np.argsort(row)[::-1].tolist().index(image_of[text]) for text, row in enumerate(t2i)]
    for name, got in (("image_to_text", ranks), ("text_to_image", back)):
        for cut in (1, 5, 10):
            found[f"flickr30k/{name}/r{cut}"] = sum(rank < cut for rank in got) / len(got)
    return found


@pytest.mark.parametrize("parser", ["strict", "official"])
def test_recall_is_that_of_the_script(items, tmp_path, parser):
    rng = np.random.default_rng(0)
    i2t = rng.permutation(NUM_IMAGES * NUM_TEXTS).reshape(NUM_IMAGES, NUM_TEXTS).astype(np.float32)
    t2i = rng.permutation(NUM_IMAGES * NUM_TEXTS).reshape(NUM_TEXTS, NUM_IMAGES).astype(np.float32)
    np.savez(tmp_path / "two.npz", i2t=i2t, t2i=t2i)
    found = values(measures_of(FLICKR30K, items, read_matrix(tmp_path / "two.npz", items), parser))
    expected = albef(i2t, t2i)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert found["flickr30k/r_mean"] == pytest.approx(sum(expected.values()) / 6, abs=1e-12)
    np.save(tmp_path / "one.npy", i2t.astype(np.float64))
    np.savez(tmp_path / "one.npz", similarities=i2t)
    for name in ("one.npy", "one.npz"):
        single = values(measures_of(FLICKR30K, items, read_matrix(tmp_path / name, items), parser))
        assert {key: single[key] for key in expected} == pytest.approx(albef(i2t, i2t.T), abs=1e-12)


def test_official_ties_are_broken_by_index():
    rng = np.random.default_rng(0)
    for _ in range(500):
        scores = rng.integers(0, 4, 15).astype(np.float32)
        targets = sorted(rng.choice(15, size=rng.integers(1, 4), replace=False).tolist())
        order = np.argsort(scores, kind="stable")[::-1].tolist()  # the script's sort leaves ties open
        rank = min(order.index(target) for target in targets)
        assert official_hits(scores, targets) == [float(rank < cut) for cut in (1, 5, 10)]


def test_strictly_a_tie_is_wrong():
    rng = np.random.default_rng(1)
    for _ in range(200):
        scores = rng.integers(0, 4, 15).astype(np.float32)
        targets = sorted(rng.choice(15, size=rng.integers(1, 4), replace=False).tolist())
        wrong = [index for index in range(15) if index not in targets]
        # The order that is worst for the right candidates.
        ranking = sorted(range(15), key=lambda index: (-scores[index], index not in wrong))
        rank = min(ranking.index(target) for target in targets)
        assert strict_hits(scores, targets) == [float(rank < cut) for cut in (1, 5, 10)]


def test_constant_and_perfect_similarities(items, tmp_path):
    image_of = np.array(owners())
    np.save(tmp_path / "perfect.npy", (image_of == np.arange(NUM_IMAGES)[:, None]).astype(np.float32))
    perfect = values(measures_of(FLICKR30K, items, read_matrix(tmp_path / "perfect.npy", items), "strict"))
    assert perfect["flickr30k/r_mean"] == 1
    assert perfect["flickr30k/image_to_text/tied"] == perfect["flickr30k/text_to_image/tied"] == 0
    np.save(tmp_path / "constant.npy", np.zeros((NUM_IMAGES, NUM_TEXTS), np.float32))
    constant = measures_of(FLICKR30K, items, read_matrix(tmp_path / "constant.npy", items), "strict")
    assert values(constant)["flickr30k/r_mean"] == 0
    for way, count in (("image_to_text", NUM_IMAGES), ("text_to_image", NUM_TEXTS)):
        tied = constant[f"flickr30k/{way}/tied"]
        assert (tied.metric.value(), len(tied.clusters)) == (1, count)


def test_ties_that_matter_are_counted(items):
    rng = np.random.default_rng(2)
    matrix = rng.integers(0, 50, (NUM_IMAGES, NUM_TEXTS)).astype(np.float32)
    given = rows_of(items[:NUM_IMAGES], matrix) | rows_of(items[NUM_IMAGES:], matrix.T)
    found = values(measures_of(FLICKR30K, items, given, "strict"))
    own = np.array(owners())[None] == np.arange(NUM_IMAGES)[:, None]
    best = np.where(own, matrix, -1).max(axis=1)
    level = [(matrix[n][~own[n]] == best[n]).any() for n in range(NUM_IMAGES)]
    assert found["flickr30k/image_to_text/tied"] == pytest.approx(np.mean(level))
    back = [(np.delete(matrix[:, t], n) == matrix[n, t]).any() for t, n in enumerate(owners())]
    assert found["flickr30k/text_to_image/tied"] == pytest.approx(np.mean(back))
    assert 0 < np.mean(level) < 1


def test_five_captions_an_image(tmp_path):
    rows = [{"image": f"{n}.jpg", "caption": [f"{n} {k}" for k in range(5 + n)]} for n in range(3)]
    (tmp_path / "coco_karpathy_test.json").write_text(json.dumps(rows))
    items = COCO_RETRIEVAL.read(tmp_path, NO_PICTURES)
    assert [item.prompt for item in items[3:]] == [f"{n} {k}" for n in range(3) for k in range(5)]
    assert items[2].truth["targets"] == (10, 11, 12, 13, 14)


def test_what_is_asked(items):
    asked = list(questions_of(items))
    assert asked[0] == {
        "id": "flickr30k/image/0",
        "split": "image_to_text",
        "image": "flickr30k-images/0.jpg",
        "prompt": "",
    }
    assert asked[-1]["prompt"] == "caption 13 4"
    assert asked[-1]["id"] == "flickr30k/text/69"


def test_from_the_command_line(folder, tmp_path, capsys):
    np.save(tmp_path / "sims.npy", np.eye(NUM_IMAGES, NUM_TEXTS, dtype=np.float32))
    score = ["eval", "score", "flickr30k", "--data", str(folder.parent), "--answers"]
    assert main([*score, str(tmp_path / "sims.npy")]) == 0
    assert "flickr30k/text_to_image/r10" in capsys.readouterr().out
    np.save(tmp_path / "few.npy", np.eye(NUM_IMAGES, dtype=np.float32))
    assert main([*score, str(tmp_path / "few.npy")]) == 2
    assert "shape (14, 14) instead of (14, 70), images by texts" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((14, 70)), "b": np.zeros((70, 14))}, "holds a, b; needed is one array, or i2t and t2i"),
        ({"a": np.full((14, 70), np.nan)}, "not all similarities are numbers"),
        ({"a": np.zeros((14, 70), int)}, "not all similarities are numbers"),
        ({"i2t": np.zeros((14, 70)), "t2i": np.zeros((14, 70))}, r"\(14, 70\) instead of \(70, 14\), texts by images"),
    ],
)
def test_matrices_that_do_not_fit(items, tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_matrix(tmp_path / "bad.npz", items)
    (tmp_path / "no.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read the matrix"):
        read_matrix(tmp_path / "no.npy", items)
    with pytest.raises(ValueError, match="these questions are not queries"):
        read_matrix(tmp_path / "bad.npz", items[:3])


@pytest.mark.parametrize(
    ("rows", "message"),
    [({}, "not a list of images"), ([{"image": "a.jpg", "caption": "one"}], "row 0: caption is not")],
)
def test_files_of_another_shape(tmp_path, rows, message):
    (tmp_path / "flickr30k_test.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        FLICKR30K.read(tmp_path, NO_PICTURES)
