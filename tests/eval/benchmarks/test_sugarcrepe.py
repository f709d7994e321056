"""SugarCrepe: its real files, the length-only baseline, and plain transcriptions of the authors' rules."""

from __future__ import annotations

import random
from collections import Counter

import datasets
import pytest

from eval_encoders import Constant
from eval_items import picture
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.sugarcrepe import (
    IMAGES,
    SUBSETS,
    SUGARCREPE,
    SUGARCREPE_CAPTIONS,
)
from mllm_align_eval.items import Picture
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import similarity_rows

NO_PICTURES = PictureFolder(None, IMAGES)
SIZES = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
# How often the shorter caption is the true one, ties half.
BY_LENGTH = {
    "add_att": 0.996,
    "add_obj": 0.990,
    "replace_att": 0.534,
    "replace_obj": 0.505,
    "replace_rel": 0.642,
    "swap_att": 0.492,
    "swap_obj": 0.549,
}
TEXTS = ("(1)", "(2)", "Output (1).", "Output (2)", "Neither (1) nor (2) is right.", "", "2", "Both", "1. It is red")


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


@pytest.fixture(scope="module")
def asked(data_dir):
    return SUGARCREPE.read(data_dir / "sugarcrepe", NO_PICTURES)


@pytest.fixture(scope="module")
def scored(data_dir):
    return SUGARCREPE_CAPTIONS.read(data_dir / "sugarcrepe", NO_PICTURES)


@pytest.fixture(scope="module")
def some(asked):
    """The first 20 pairs of each subset: to read a text takes a millisecond."""
    return [item for item in asked if int(item.id.split("/")[2]) < 20]


def test_the_real_files(asked, scored):
    assert Counter(item.split for item in scored) == SIZES
    assert Counter(item.split for item in asked) == {name: 2 * size for name, size in SIZES.items()}
    assert len({item.id for item in asked}) == 2 * 7511
    true = "A drawing of a young woman with many facial piercings."
    false = "A drawing of a tattooed young woman with many facial piercings."
    head, tail = "Which caption best describes the image?\n(1) ", "\nOutput (1) or (2)."
    assert asked[0].id == "sugarcrepe/add_att/0/pos_first"
    assert asked[0].prompt == f"{head}{true}\n (2) {false}{tail}"
    assert asked[1].prompt == f"{head}{false}\n (2) {true}{tail}"
    assert (asked[0].answer, asked[1].answer) == ("(1)", "(2)")
    assert (scored[0].choices, scored[0].answer) == ((true, false), true)
    assert asked[0].pictures[0].name == "000000085329.jpg"


def test_length_alone(scored):
    credit = {name: 0.0 for name in SUBSETS}
    for item in scored:
        true, false = map(len, item.choices)
        credit[item.split] += 1.0 if true < false else 0.5 if true == false else 0.0
    assert {name: round(credit[name] / SIZES[name], 3) for name in SUBSETS} == BY_LENGTH
    # A model whose log-probability is that of so many equal tokens: what is not tied is right.
    found = values(
        measures_of(SUGARCREPE_CAPTIONS, scored, {i.id: [-len(c) for c in i.choices] for i in scored}, "strict")
    )
    for name in SUBSETS:
        tied = found[f"sugarcrepe_captions/{name}/tied"]
        assert found[f"sugarcrepe_captions/{name}/acc"] + tied / 2 == pytest.approx(BY_LENGTH[name], abs=5e-4)


@pytest.mark.parametrize("parser", ["strict", "official"])
def test_both_orders_are_those_of_a_loop(some, parser):
    rng = random.Random(0)
    texts = {item.id: rng.choice(TEXTS) for item in some}
    found = values(measures_of(SUGARCREPE, some, texts, parser))
    for subset in SUBSETS:
        right = {}
        for item in some:
            if item.split == subset:
                text, number = texts[item.id], "1" if item.id.endswith("pos_first") else "2"
                if parser == "official":
                    hit = f"({number})" in text and f"({'2' if number == '1' else '1'})" not in text
                else:
                    hit = text.removeprefix("Output ").strip("().")[:1] == number
                right[item.id] = hit
        first = [right[key] for key in right if key.endswith("pos_first")]
        second = [right[key] for key in right if key.endswith("neg_first")]
        both = [a and b for a, b in zip(first, second, strict=True)]
        expected = {
            "acc": sum(right.values()) / len(right),
            "pos_first_acc": sum(first) / len(first),
            "neg_first_acc": sum(second) / len(second),
            "both_acc": sum(both) / len(both),
        }
        for name, value in expected.items():
            assert found[f"sugarcrepe/{subset}/{name}"] == pytest.approx(value, abs=1e-12), (subset, name)
    mean = sum(found[f"sugarcrepe/{subset}/acc"] for subset in SUBSETS) / 7
    assert found["sugarcrepe/acc_mean7"] == pytest.approx(mean, abs=1e-12)


def test_a_constant_answer_is_right_in_one_order(some):
    found = values(measures_of(SUGARCREPE, some, {item.id: "(1)" for item in some}, "strict"))
    assert found["sugarcrepe/swap_obj/acc"] == 0.5
    assert found["sugarcrepe/swap_obj/pos_first_acc"] == 1
    assert found["sugarcrepe/swap_obj/both_acc"] == found["sugarcrepe/swap_obj/neg_first_acc"] == 0


def test_a_tie_is_wrong(scored):
    tied = values(measures_of(SUGARCREPE_CAPTIONS, scored, {item.id: [0.3, 0.3] for item in scored}, "official"))
    assert tied["sugarcrepe_captions/acc_mean7"] == 0
    assert tied["sugarcrepe_captions/add_att/tied"] == 1
    perfect = values(measures_of(SUGARCREPE_CAPTIONS, scored, {item.id: [1, 0] for item in scored}, "official"))
    assert perfect["sugarcrepe_captions/acc_mean7"] == 1


def test_means_by_way(scored):
    given = {item.id: [1, 0] if item.split in ("add_att", "swap_obj", "replace_obj") else [0, 1] for item in scored}
    found = values(measures_of(SUGARCREPE_CAPTIONS, scored, given, "strict"))
    ways = [found[f"sugarcrepe_captions/{way}/acc"] for way in ("add", "replace", "swap")]
    assert ways == pytest.approx([1 / 2, 1 / 3, 1 / 2])


def test_constant_embeddings_of_the_real_captions_are_all_ties(scored):
    items = [
        type(item)(**{**vars(item), "pictures": (Picture(item.pictures[0].name, lambda: picture(7)),)})
        for item in scored
        if int(item.id.split("/")[2]) < 30
    ]
    found = values(measures_of(SUGARCREPE_CAPTIONS, items, similarity_rows(Constant(300), items), "official"))
    assert {name: found[f"sugarcrepe_captions/{name}/acc"] for name in SUBSETS} == dict.fromkeys(SUBSETS, 0)
    assert {name: found[f"sugarcrepe_captions/{name}/tied"] for name in SUBSETS} == dict.fromkeys(SUBSETS, 1)


def test_scores_are_needed_for_captions(scored):
    with pytest.raises(ValueError, match=r"'sugarcrepe_captions/add_att/0' is a text: .* with 2 scores"):
        measures_of(SUGARCREPE_CAPTIONS, scored, {item.id: "(1)" for item in scored}, "strict")
    wrong = {item.id: [1.0, 2.0] for item in scored} | {scored[3].id: [1.0]}
    with pytest.raises(ValueError, match=r"'sugarcrepe_captions/add_att/3' has 1 scores instead of 2"):
        measures_of(SUGARCREPE_CAPTIONS, scored, wrong, "strict")


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "neither"), ('{"0": {"caption": "a"}}', "row 0: not an object with")]
)
def test_files_of_another_shape(tmp_path, text, message):
    (tmp_path / "add_att.json").write_text(text)
    with pytest.raises(ValueError, match=rf"add_att\.json.*{message}"):
        SUGARCREPE.read(tmp_path, NO_PICTURES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"add_att\.json: get it from .*sugar-crepe"):
        SUGARCREPE_CAPTIONS.read(tmp_path, NO_PICTURES)


def test_the_copy_on_the_hub():
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "tested_labels": datasets.List(datasets.Value("string")),
            "true_label": datasets.ClassLabel(names=["a cat", "a dog", "a cup"]),
        }
    )
    shades = (10, 200, 10)
    rows = datasets.Dataset.from_dict(
        {
            "image": [picture(shade) for shade in shades],
            "tested_labels": [["a dog", "a cat"], ["a cup", "a dog"], ["a cat", "a cup"]],
            "true_label": [1, 2, 0],
        },
        features=features,
    )
    hubs = dict(zip(SUBSETS, SUGARCREPE.hub, strict=True))
    assert hubs["swap_obj"].path == "HuggingFaceM4/SugarCrepe_swap_obj"
    both = hubs["swap_obj"].read(rows)
    assert [(item.id, item.answer) for item in both[:2]] == [
        ("sugarcrepe/swap_obj/0/pos_first", "(1)"),
        ("sugarcrepe/swap_obj/0/neg_first", "(2)"),
    ]
    assert "(1) a cat\n (2) a dog" in both[1].prompt
    captions = SUGARCREPE_CAPTIONS.hub[0].read(rows)
    assert [item.answer for item in captions] == ["a dog", "a cup", "a cat"]
    assert captions[0].cluster == captions[2].cluster != captions[1].cluster
    # Rows of every subset are numbered from 0: a picture goes by its content.
    assert len({item.pictures[0].name for item in captions}) == 2
    assert [item.pictures[0].load().getpixel((0, 0))[0] for item in captions] == list(shades)
    with pytest.raises(ValueError, match="row 0: tested_labels is not a true and a wrong caption"):
        hubs["add_att"].read(rows.remove_columns("tested_labels"))
