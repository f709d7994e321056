"""SugarCrepe++: the published schema, both tasks as loops, and encoders on them."""

from __future__ import annotations

import json
import random

import pytest

from eval_encoders import Constant, Drawn, Told
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.sugarcrepe_pp import IMAGES, SUBSETS_PP, SUGARCREPE_PP
from mllm_align_eval.items import Picture
from mllm_align_eval.runner import is_askable
from mllm_align_eval.scoring import answered_splits, measures_of, questions_of
from mllm_align_eval.similarity import similarity_rows

NO_PICTURES = PictureFolder(None, IMAGES)
ROWS = 8


def row(number):
    return {
        "id": number,
        "filename": f"{number // 2}.jpg",
        "caption": f"a {number}",
        "caption2": f"one {number}",
        "negative_caption": f"no {number}",
    }


@pytest.fixture
def items(tmp_path):
    for subset in SUBSETS_PP:
        (tmp_path / f"{subset}.json").write_text(json.dumps([row(number) for number in range(ROWS)]))
    return SUGARCREPE_PP.read(tmp_path, NO_PICTURES)


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def shown(items, picture):
    """The same questions with a picture that is there."""
    return [
        type(item)(**{**vars(item), "pictures": tuple(Picture(p.name, lambda: picture) for p in item.pictures)})
        for item in items
    ]


def test_the_schema(items):
    assert SUBSETS_PP == ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
    assert len(items) == 4 * 5 * ROWS
    assert [item.id for item in items[:2]] == [
        "sugarcrepe_pp/replace_att/0/caption",
        "sugarcrepe_pp/replace_att/0/caption2",
    ]
    assert [item.choices for item in items[:2]] == [("a 0", "no 0"), ("one 0", "no 0")]
    asked = {question["id"]: question for question in questions_of(items)}
    assert asked["sugarcrepe_pp/swap_obj/3/text2"] == {
        "id": "sugarcrepe_pp/swap_obj/3/text2",
        "split": "swap_obj_text",
        "image": None,
        "prompt": "one 3",
        "choices": ["a 3", "no 3"],
    }


def test_image_to_text_and_text_to_text(items):
    rng = random.Random(1)
    # s(I, P1), s(I, P2), s(I, N), s(P1, P2), s(P1, N), s(P2, N) of each triplet, with many ties.
    drawn = {(subset, n): [rng.randint(0, 3) for _ in range(6)] for subset in SUBSETS_PP for n in range(ROWS)}
    places = {"caption": (0, 2), "caption2": (1, 2), "text": (3, 4), "text2": (3, 5)}
    scores = {}
    for item in items:
        _, subset, number, kind = item.id.split("/")
        scores[item.id] = [drawn[subset, int(number)][place] for place in places[kind]]
    found = values(measures_of(SUGARCREPE_PP, items, scores, "official"))
    for subset in SUBSETS_PP:
        itt = tot = level = 0
        for number in range(ROWS):
            p1, p2, n, both, first, second = drawn[subset, number]
            itt += p1 > n and p2 > n
            tot += both > first and both > second
            level += (both == first) + (both == second)
        head = f"sugarcrepe_pp/{subset}"
        assert [found[f"{head}/{task}_acc"] for task in ("itt", "tot")] == [itt / ROWS, tot / ROWS]
        assert found[f"{head}_text/tied"] == level / (2 * ROWS)
    for task in ("itt", "tot"):
        parts = [found[f"sugarcrepe_pp/{subset}/{task}_acc"] for subset in SUBSETS_PP]
        assert found[f"sugarcrepe_pp/{task}_acc_mean5"] == pytest.approx(sum(parts) / 5)


def test_scores_of_images_alone(items):
    seen = {item.id: [1.0, 0.0] for item in items if item.pictures}
    asked, left = answered_splits(items, seen)
    assert left == [f"{subset}_text" for subset in SUBSETS_PP]
    found = values(measures_of(SUGARCREPE_PP, asked, seen, "strict"))
    assert found["sugarcrepe_pp/itt_acc_mean5"] == 1
    assert not any("tot" in key for key in found)


def test_a_model_that_writes_is_asked_about_images_alone(items):
    assert {item.split for item in items if is_askable(item, "logprob", "right")} == set(SUBSETS_PP)


def test_constant_embeddings_get_nothing_and_perfect_ones_all(items):
    from eval_items import picture

    asked = shown(items, picture(3))
    constant = values(measures_of(SUGARCREPE_PP, asked, similarity_rows(Constant(), asked), "strict"))
    assert (constant["sugarcrepe_pp/itt_acc_mean5"], constant["sugarcrepe_pp/tot_acc_mean5"]) == (0, 0)
    assert {value for key, value in constant.items() if key.endswith("/tied")} == {1}
    true = Told(lambda image: (1, 0), lambda text: (0, 1) if text.startswith("no") else (1, 0))
    perfect = values(measures_of(SUGARCREPE_PP, asked, similarity_rows(true, asked), "strict"))
    assert (perfect["sugarcrepe_pp/itt_acc_mean5"], perfect["sugarcrepe_pp/tot_acc_mean5"]) == (1, 1)


def test_chance_is_a_third(tmp_path):
    rows = [row(number) | {"filename": f"{number}.jpg"} for number in range(1500)]
    (tmp_path / "swap_att.json").write_text(json.dumps(rows))
    items = SUGARCREPE_PP.read(tmp_path, NO_PICTURES)
    encoder = Drawn()
    image = Told(lambda picture: encoder.vector(picture.name.encode()), lambda text: encoder.vector(text.encode()))
    found = values(measures_of(SUGARCREPE_PP, items, similarity_rows(image, items), "strict"))
    assert found["sugarcrepe_pp/swap_att/itt_acc"] == pytest.approx(1 / 3, abs=0.05)
    assert found["sugarcrepe_pp/swap_att/tot_acc"] == pytest.approx(1 / 3, abs=0.05)
    assert found["sugarcrepe_pp/swap_att/tied"] == 0


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"replace_att\.json: get it from .*scpp"):
        SUGARCREPE_PP.read(tmp_path, NO_PICTURES)
    (tmp_path / "swap_obj.json").write_text(json.dumps([{"filename": "a.jpg", "caption": "a"}]))
    with pytest.raises(
        ValueError, match=r"swap_obj\.json, row 0: not an object with the texts filename, caption, cap"
    ):
        SUGARCREPE_PP.read(tmp_path, NO_PICTURES)
