"""Rows of scores from encoders: cosines by loops, equal vectors that stay equal, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eval_encoders import Constant, Drawn, Told
from eval_items import item
from mllm_align_eval.benchmarks.captions import caption_item
from mllm_align_eval.benchmarks.retrieval import queries
from mllm_align_eval.items import Item, Picture
from mllm_align_eval.matrices import ANCHOR, NUM_SCORES, TEMPLATES
from mllm_align_eval.similarity import BLOCK, check_scored_by_rows, cosines, mean_vectors, similarity_rows


def shade(number: int) -> Picture:
    return Picture(f"{number}.png", lambda: Image.new("RGB", (4, 4), (number, 0, 0)))


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(first, second, strict=True))
    return dot / (sum(float(a) ** 2 for a in first) * sum(float(b) ** 2 for b in second)) ** 0.5


def test_cosines_are_those_of_a_loop_and_equal_vectors_are_level() -> None:
    encoder = Drawn(33)
    texts = encoder.texts([f"t{n}" for n in range(BLOCK + 5)])
    found = cosines(texts[:7], texts)
    assert found.dtype == np.float32
    for row, column in ((0, 0), (2, 5), (6, BLOCK + 4)):
        assert found[row, column] == pytest.approx(cosine(texts[row], texts[column]), abs=1e-6)
    same = np.repeat(Drawn(1537).texts(["one"]), BLOCK + 77, axis=0)
    assert len(np.unique(cosines(same[: BLOCK + 3], same))) == 1
    with pytest.raises(ValueError, match="vectors of 33 and of 1537 numbers cannot be compared"):
        cosines(texts, same)


def test_mean_vectors() -> None:
    vectors = Drawn(5).texts(list("abcdef"))
    found = mean_vectors(vectors, 3)
    for place in range(2):
        mean = vectors[3 * place : 3 * place + 3].astype(float).sum(axis=0)
        np.testing.assert_allclose(found[place], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(mean_vectors(vectors, 1), vectors)
    assert (mean_vectors(np.stack([vectors[0], -vectors[0]]), 2) == 0).all()


def test_captions_texts_and_classes() -> None:
    encoder = Drawn()
    seen = [caption_item(f"x/{n}", "s", "k", f"{n}", shade(n), (f"t{n}", "t9"), 0) for n in range(3)]
    read = replace(seen[0], id="x/read", pictures=(), truth={NUM_SCORES: 2, ANCHOR: "t1"})
    named = replace(seen[1], id="x/named", truth={NUM_SCORES: 2, TEMPLATES: ("a {}.", "the {}.")})
    found = similarity_rows(encoder, [*seen, read, named])
    assert list(found) == ["x/0", "x/1", "x/2", "x/read", "x/named"]
    assert (encoder.num_images, encoder.num_texts) == (3, 8)
    for number, each in enumerate(seen):
        image = encoder.images([shade(number)])[0]
        expected = [cosine(image, encoder.texts([choice])[0]) for choice in each.choices]
        assert list(found[each.id]) == pytest.approx(expected, abs=1e-6)
    own = encoder.texts(["t1"])[0]
    assert list(found["x/read"]) == pytest.approx([cosine(own, encoder.texts([c])[0]) for c in ("t0", "t9")], abs=1e-6)
    means = [encoder.texts([f"a {c}.", f"the {c}."]).sum(axis=0) for c in ("t1", "t9")]
    image = encoder.images([shade(1)])[0]
    assert list(found["x/named"]) == pytest.approx([cosine(image, mean) for mean in means], abs=1e-6)


def pool(benchmark: str, captions: list[list[str]]) -> list[Item]:
    return queries(
        benchmark, [f"{n}" for n in range(len(captions))], [shade(n) for n in range(len(captions))], captions
    )


def test_queries_of_several_benchmarks_have_pools_of_their_own() -> None:
    one, two = pool("a", [["x", "y"], ["z"], ["x"]]), pool("b", [["u"], ["v"]])
    encoder = Drawn()
    found = similarity_rows(encoder, [*one, *two])
    assert encoder.num_texts == 3 + 2, "an equal text is embedded once"
    rows = [np.asarray(found[f"a/image/{n}"]) for n in range(3)]
    assert [len(row) for row in rows] == [4, 4, 4]
    assert len(found["b/text/1"]) == 2
    assert all(row[0] == row[3] for row in rows)
    np.testing.assert_array_equal(np.stack(rows).T, [np.asarray(found[f"a/text/{n}"]) for n in range(4)])
    for missing in (one[0], one[-1]):
        with pytest.raises(ValueError, match="retrieval needs the queries of all images and all texts"):
            similarity_rows(encoder, [each for each in one if each != missing])


def test_what_no_encoder_can_answer() -> None:
    with pytest.raises(ValueError, match="'q' is no question that a dual encoder can answer"):
        check_scored_by_rows([item("q")])
    uneven = Told(lambda picture: (1, 0), lambda text: (1, 0, 0))
    with pytest.raises(ValueError, match="vectors of 2 and of 3 numbers"):
        similarity_rows(uneven, pool("a", [["x"], ["y"]]))


def test_a_constant_gives_level_scores() -> None:
    rows = similarity_rows(Constant(700), pool("a", [[f"{n} {k}" for k in range(5)] for n in range(40)]))
    assert len({score for row in rows.values() for score in row}) == 1
