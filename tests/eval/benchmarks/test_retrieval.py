"""Retrieval: ALBEF's ranking as a loop, fair ties by enumeration, and matrices from files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mllm_align.cli import main
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.retrieval import FLICKR30K, IMAGES, fair_hits, official_hits
from mllm_align_eval.matrices import read_matrix
from mllm_align_eval.scoring import measures_of, questions_of

NO_PICTURES = PictureFolder(None, IMAGES["flickr30k"])
NUM_IMAGES = 14


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
    return [n for n in range(NUM_IMAGES) for _ in range(6 if n == 3 else 5)]


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
    i2t = rng.permutation(NUM_IMAGES * 71).reshape(NUM_IMAGES, 71).astype(np.float32)
    t2i = rng.permutation(NUM_IMAGES * 71).reshape(71, NUM_IMAGES).astype(np.float32)
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


def test_fair_ties_are_the_mean_over_all_orders():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = rng.integers(0, 3, 6)
        targets = sorted(rng.choice(6, size=2, replace=False).tolist())
        hits = np.zeros(3)
        orders = list(itertools.permutations(range(6)))
        for order in orders:
            ranking = sorted(range(6), key=lambda index: (-scores[index], order[index]))
            rank = min(ranking.index(target) for target in targets)
            hits += [rank < cut for cut in (1, 5, 10)]
        assert fair_hits(scores, targets) == pytest.approx((hits / len(orders)).tolist(), abs=1e-12)


def test_constant_and_perfect_similarities(items, tmp_path):
    image_of = np.array(owners())
    np.save(tmp_path / "perfect.npy", (image_of == np.arange(NUM_IMAGES)[:, None]).astype(np.float32))
    perfect = values(measures_of(FLICKR30K, items, read_matrix(tmp_path / "perfect.npy", items), "strict"))
    assert perfect["flickr30k/r_mean"] == 1
    np.save(tmp_path / "constant.npy", np.zeros((NUM_IMAGES, 71), np.float32))
    constant = values(measures_of(FLICKR30K, items, read_matrix(tmp_path / "constant.npy", items), "strict"))
    assert constant["flickr30k/text_to_image/r1"] == pytest.approx(1 / NUM_IMAGES)
    assert constant["flickr30k/text_to_image/r10"] == pytest.approx(10 / NUM_IMAGES)


def test_what_is_asked(items):
    asked = list(questions_of(items))
    assert asked[0] == {
        "id": "flickr30k/image/0",
        "split": "image_to_text",
        "image": "flickr30k-images/0.jpg",
        "prompt": "",
    }
    assert asked[-1]["prompt"] == "caption 13 4"
    assert asked[-1]["id"] == "flickr30k/text/70"


def test_from_the_command_line(folder, tmp_path, capsys):
    np.save(tmp_path / "sims.npy", np.eye(NUM_IMAGES, 71, dtype=np.float32))
    score = ["eval", "score", "flickr30k", "--data", str(folder.parent), "--answers"]
    assert main([*score, str(tmp_path / "sims.npy")]) == 0
    assert "flickr30k/text_to_image/r10" in capsys.readouterr().out
    np.save(tmp_path / "few.npy", np.eye(NUM_IMAGES, dtype=np.float32))
    assert main([*score, str(tmp_path / "few.npy")]) == 2
    assert "shape (14, 14) instead of (14, 71), images by texts" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((14, 71)), "b": np.zeros((71, 14))}, "holds a, b; needed is one array, or i2t and t2i"),
        ({"a": np.full((14, 71), np.nan)}, "not all similarities are numbers"),
        ({"a": np.zeros((14, 71), int)}, "not all similarities are numbers"),
        ({"i2t": np.zeros((14, 71)), "t2i": np.zeros((14, 71))}, r"\(14, 71\) instead of \(71, 14\), texts by images"),
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
