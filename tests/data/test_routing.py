"""Captions routed by length: which way each goes, which of several an epoch has, and what the collator makes of it."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from typing import Any

import datasets
import pytest

from mllm_align.contract import Feature, Needs, View
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mixing import mix_sources
from mllm_align.data.routes import Routed, Routes, seeded
from mllm_align.data.routing import RoutedDataset, route_captions, with_routes
from mllm_align.families import family_of
from mllm_align.models import load_processor
from mllm_align.objectives.pairs import IMAGE_PROMPT
from runs import picture
from tiny import tiny

SHORT = [f"A small red {name}." for name in ("circle", "square", "star")]
LONG = [f"{' and '.join([text.rstrip('.')] * 9)}." for text in SHORT]
Row = dict[str, Any]


def split_words(texts: list[str], **_: Any) -> dict[str, list[list[str]]]:
    """A tokenizer of words."""
    return {"input_ids": [text.split() for text in texts]}


def words(count: int) -> str:
    return " ".join(["word"] * count)


def rows_of() -> list[Row]:
    """One row of each way, and one that goes none."""
    return [
        {"id": "a", "image": "a.png", "captions": [SHORT[0]]},
        {"id": "b", "image": "b.png", "prompt": "What is it?", "chosen": LONG[0], "system": "Be kind."},
        {"id": "c", "image": "c.png", "captions": [words(600)], "caption": SHORT[1]},
        {"id": "d", "image": "d.png", "captions": [words(501)]},
        {"id": "e", "image": "e.png", "caption": SHORT[2], "chosen": LONG[1], "image_id": 7},
    ]


@pytest.mark.parametrize("table", [False, True])
def test_length_alone_says_which_way(table: bool) -> None:
    given = rows_of()
    names = {name for row in given for name in row}
    rows: Any = datasets.Dataset.from_list([{n: row.get(n) for n in names} for row in given]) if table else given
    routed = route_captions(rows, split_words, "Describe.")
    found = [{key: value for key, value in row.items() if value is not None} for row in routed]
    assert found == [
        {"id": "a", "image": "a.png", "prompt": "Describe.", "caption": SHORT[0]},
        {"id": "b", "image": "b.png", "prompt": "Describe.", "chosen": LONG[0]},
        {"id": "c", "image": "c.png", "prompt": "Describe.", "caption": SHORT[1]},
        {"id": "e", "image": "e.png", "prompt": "Describe.", "caption": SHORT[2], "chosen": LONG[1], "image_id": 7},
    ]
    assert routed.counts == Routed(short=2, long=1, both=1, left_out=1, too_long=2)
    assert len(routed) == 4
    assert routed[-1] == routed[3]
    with pytest.raises(IndexError):
        routed[4]
    unlimited = route_captions(rows, split_words, "Describe.", short=10, long=None)
    assert unlimited.counts == Routed(short=1, long=2, both=2, left_out=0, too_long=0)


def test_false_texts_that_are_long_are_not_contrasted_either() -> None:
    """Without a list there is nothing to leave out; what is no list of texts is for who reads it to refuse."""
    for given, left in (
        ([SHORT[1], LONG[1], words(600), SHORT[2]], [SHORT[1], SHORT[2]]),
        ([words(29), words(30)], [words(29)]),
        ([LONG[1]], []),
        ([], []),
        (SHORT[1], SHORT[1]),
        ([3], [3]),
        (None, None),
    ):
        row = {"image": "a.png", "captions": [SHORT[0], LONG[0]], "negatives": given}
        assert route_captions([row], split_words, "Describe.")[0]["negatives"] == left
    plain = {"image": "a.png", "caption": SHORT[0]}
    assert "negatives" not in route_captions([plain], split_words, "Describe.")[0]


def test_more_rows_than_are_counted_at_once() -> None:
    rows = [{"image": "a.png", "caption": words(1 + n % 3)} for n in range(2500)]
    routed = route_captions(rows, split_words, "Describe.", short=2, long=2)
    assert routed.counts == Routed(short=834, long=833, both=0, left_out=833, too_long=833)
    assert [len((row.get("caption") or row["chosen"]).split()) for row in routed] == [1, 2] * 833 + [1]


def test_several_captions_take_turns_and_each_comes_before_any_again() -> None:
    rows = [{"id": f"row {n}", "image": "a.png", "captions": [*SHORT, *LONG[:2]]} for n in range(40)]
    routed = route_captions(rows, split_words, "Describe.")
    assert routed.by_epoch
    shown = [[routed[place, epoch]["caption"] for epoch in range(6)] for place in range(40)]
    assert all(set(each[:3]) == set(each[3:]) == set(SHORT) for each in shown)
    # The order is another for another row, and another seed; the same for whoever asks.
    assert len({tuple(each[:3]) for each in shown}) == 6
    assert Counter(each[0] for each in shown).most_common()[-1][1] > 4
    other = with_routes(routed, lambda routes: seeded(routes, 1, once=False))
    assert [other[place]["caption"] for place in range(40)] != [each[0] for each in shown]
    routed.set_epoch(2)
    assert [row["caption"] for row in routed] == [each[2] for each in shown]
    # Long ones take turns of their own.
    assert {routed[0, epoch]["chosen"] for epoch in range(2)} == set(LONG[:2])
    moved = route_captions([rows[1], rows[0]], split_words, "Describe.")
    assert moved[1, 4] == routed[0, 4]


def test_a_row_keeps_its_captions_where_it_shall() -> None:
    rows = [{"image": "a.png", "captions": SHORT}]
    once = route_captions(rows, split_words, "Describe.", redraw=False)
    assert not once.by_epoch
    assert len({once[0, epoch]["caption"] for epoch in range(9)}) == 1
    assert not route_captions([{"image": "a.png", "captions": SHORT[:1]}], split_words, "Describe.").by_epoch


def test_in_a_mix_and_in_other_processes() -> None:
    routed = route_captions([{"id": "x", "image": "a.png", "captions": SHORT}], split_words, "Describe.")
    mixed = mix_sources({"plain": [{"prompt": "?", "chosen": "!"}], "captions": routed})
    assert mixed.by_epoch
    assert [mixed[1, epoch]["caption"] for epoch in range(3)] == [routed[0, epoch]["caption"] for epoch in range(3)]
    assert mixed[1]["source"] == "captions"
    frozen = with_routes(mixed, lambda routes: seeded(routes, 3, once=True))
    assert not frozen.by_epoch
    assert frozen.parts["captions"].routes == Routes(prompt="Describe.", redraw=False, seed=3)
    assert with_routes([1], lambda routes: routes) == [1]
    copied = pickle.loads(pickle.dumps(routed))
    assert copied[0, 2] == routed[0, 2]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": []}, {}, "takes one dataset: route the source that has captions"),
        (iter(()), {}, "which a stream does not allow: load without streaming"),
        (
            [{"image": "a.png", "caption": words(9)}],
            {"short": 2, "long": 3},
            "no row is left: 0 rows of captions: 0 short",
        ),
        ([{"image": "a.png", "text": "A dog."}], {}, "row 0: no column 'caption'"),
        ([3], {}, "row 0 must be a mapping of columns, got int"),
        ([{"image": "a.png", "caption": "A dog."}], {"long": 3}, "long must be a whole number of tokens from short"),
    ],
)
def test_what_cannot_be_routed(rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        route_captions(rows, split_words, "Describe.", **options)


def test_a_caption_of_no_image_is_refused() -> None:
    routed = route_captions([{"id": "x", "caption": "A dog."}], split_words, "Describe.")
    with pytest.raises(DataError, match=r"row 0 \(id 'x'\): no column 'image', of which captions are"):
        routed[0]


def test_counts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mllm_align.data.routing"):
        route_captions(rows_of(), split_words, "Describe.")
    assert caplog.messages == ["4 rows of captions: 2 short, 1 long, 1 both; 1 rows left out, 2 captions too long"]


def test_captions_of_the_world_by_the_tokens_of_its_model() -> None:
    tokenizer = load_processor("demo-base").tokenizer
    rows = load_rows("world:captions")
    routed = route_captions(rows, tokenizer, "Describe the picture.")
    assert isinstance(routed, RoutedDataset)
    # Descriptions of three objects are 23 words, of four 31: these alone are long.
    assert routed.counts.long == 0
    assert routed.counts.short + routed.counts.both == len(rows) == 1000
    for place in range(50):
        row, own = routed[place], rows[place]
        assert ("chosen" in row) == (len(own["chosen"].split()) >= 30)
        assert len(row["caption"].replace(".", " .").split()) < 30


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_image_summary_and_long_caption_share_one_prefix(family: str) -> None:
    model, processor = tiny(family)
    image = picture(0)
    rows = [
        {"image": image, "caption": "A dog.", "chosen": words(12), "system": "Be kind.", "prompt": "What is it?"},
        {"image": image, "caption": "A cat."},
        {"image": image, "chosen": words(11)},
    ]
    routed = route_captions(rows, split_words, IMAGE_PROMPT, short=10)

    needs = Needs(
        optional=(View("image", "chosen"),),
        features=(
            Feature("image", "embedding", "image", pooling="last", prompt=IMAGE_PROMPT),
            Feature("text", "embedding", "caption", pooling="last", prompt="Say it:"),
        ),
    )
    kind = family_of(model)
    collator = AlignCollator(processor, lambda _: needs, kind.image_keys, kind.token_keys)
    assert check_dataset(routed, collator, progress=False).rows == 3
    batch = collator([routed[place] for place in range(3)])["batch"]
    by_row: dict[int, dict[str, int]] = {}
    for branch in batch.branches:
        by_row.setdefault(branch.row, {})[str(branch.view)] = branch.prefix
    image_view, text_view = f"<image> {IMAGE_PROMPT}|image", "<caption> Say it:|no_image"
    assert [set(by_row[row]) for row in range(3)] == [
        {image_view, text_view, "chosen|image"},
        {image_view, text_view},
        {image_view, "chosen|image"},
    ]
    for views in by_row.values():
        shared = {prefix for view, prefix in views.items() if view != text_view}
        assert len(shared) == 1
