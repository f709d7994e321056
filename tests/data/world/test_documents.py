"""Pages: every word where its box says, answers that stand on the page, splits that share none."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mllm_align.data.loading import world_rows
from mllm_align.data.schema import parse_row
from mllm_align.data.world.catalogue import NUMBER_WORDS
from mllm_align.data.world.documents import KINDS, PAPERS, Look, document_rows, draw, iter_documents, words
from mllm_align.demo.base_model import vocabulary


def pairs(count, *args, **kwargs):
    stream = iter_documents(*args, **kwargs)
    return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module", params=sorted(PAPERS))
def found(request):
    return request.param, pairs(60, "train", 0, request.param)


def test_all_ink_is_in_the_boxes_and_every_box_is_tight(found):
    paper, all_pairs = found
    for pair in all_pairs[:30]:
        sheet, look = pair.sheets[0], pair.looks[0]
        side = sheet.paper.image_size
        levels = np.asarray(draw(sheet, look))[:, :, 0]
        ink = (levels < look.paper_level - 4) & (levels != 150)
        inside = np.zeros_like(ink)
        for word in words(sheet, look):
            left, top, right, bottom = (round(edge * side) for edge in word.box)
            inside[top:bottom, left:right] = True
            rows, columns = (np.flatnonzero(ink[top:bottom, left:right].any(axis=axis)) for axis in (1, 0))
            # The palest edge of a letter may be taken for paper here.
            assert rows[0] <= 1, word
            assert columns[0] <= 1, word
            assert bottom - top - 1 - rows[-1] <= 1, word
            assert right - left - 1 - columns[-1] <= 1, word
        assert not (ink & ~inside).any(), (paper, pair.id)


def test_the_answer_stands_where_the_question_says(found):
    _, all_pairs = found
    for pair in all_pairs:
        for sheet, answer in zip(pair.sheets, pair.answers, strict=True):
            lines = [line for line in sheet.lines if len(line) > 1 and line[0] in re.findall(r"[\w-]+", pair.text)]
            lines = [line for line in lines if line != sheet.total] or lines
            assert len(lines) == 1
            assert answer in lines[0][1:]
            if sheet.header and lines[0] != sheet.total:
                column = next(place for place, name in enumerate(sheet.header) if f" {name} " in pair.text)
                assert answer == lines[0][column]
        assert pair.answers[0] != pair.answers[1]


def test_an_invoice_adds_up_and_pages_differ_in_one_cell(found):
    paper, all_pairs = found
    for pair in all_pairs:
        first, second = (sheet.rows for sheet in pair.sheets)
        different = [a != b for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
        assert sum(different) == 1
        for sheet in pair.sheets:
            if sheet.kind == "invoice" and paper == "small":
                assert NUMBER_WORDS.index(sheet.total[1]) == sum(NUMBER_WORDS.index(row[1]) for row in sheet.rows)
            elif sheet.kind == "invoice":
                assert sheet.total[1] == f"{sum(int(row[1]) * float(row[2]) for row in sheet.rows):.2f}"
    assert set(Counter(pair.kind for pair in all_pairs).values()) == {60 // len(KINDS)}


def test_words_do_not_run_into_each_other_or_off_the_page(found):
    _, all_pairs = found
    for pair in all_pairs:
        for sheet, look in zip(pair.sheets, pair.looks, strict=True):
            placed = words(sheet, look)
            assert [word.text for word in placed] == " ".join(" ".join(line) for line in sheet.lines).split()
            for one, other in pairwise(placed):
                if one.line == other.line:
                    assert one.box[2] <= other.box[0] + 1e-9
            assert min(word.box[2] - word.box[0] for word in placed) * sheet.paper.image_size >= 2


def test_splits_share_no_page_and_seeds_give_the_same_again():
    pages = {
        split: {repr(sheet.content) for pair in pairs(150, split) for sheet in pair.sheets}
        for split in ("train", "validation", "test")
    }
    assert not pages["train"] & pages["validation"]
    assert not pages["train"] & pages["test"]
    assert not pages["validation"] & pages["test"]
    assert pairs(5, "test", 3) == pairs(5, "test", 3)
    assert pairs(5, "test", 3) != pairs(5, "test", 4)


def test_text_alone_tells_little():
    """The commonest answer to each prompt, at the best: a half of small forms say left or right."""
    said: dict[str, Counter[str]] = {}
    for pair in pairs(600):
        said.setdefault(re.sub(r"Tell me|What is|Which|is it|[?.]", "", pair.text).strip(), Counter())[
            pair.answers[0]
        ] += 1
    right = sum(counts.most_common(1)[0][1] for counts in said.values())
    assert right / 600 < 0.5


def test_small_pages_are_in_the_words_of_the_shipped_base():
    known = set(vocabulary())
    for split, which in (("train", "seen"), ("test", "held_out")):
        for pair in pairs(200, split, paraphrases=which):
            said = [pair.text, *(cell for sheet in pair.sheets for line in sheet.lines for cell in line)]
            assert {word for text in said for word in re.findall(r"[a-z]+|[:?.]", text.lower())} <= known


def test_rows_fit_the_schema_and_are_rows_of_the_world():
    dataset = world_rows("world:documents", 6, split="test", distribution="large")
    row = parse_row(dataset[0])
    assert row.id == "document/test/large/0/0"
    raw = document_rows(6, 0, "test", "large")[0]
    assert [each.text for each in row.objects["image"]] == [each["text"] for each in raw["objects"]]
    assert raw["image"].size == (448, 448)
    here, there = ({each.object_id for each in row.objects[column]} for column in ("image", "contrast_image"))
    assert len(here & there) >= len(here) - 2
    assert here != there


def test_a_look_moves_words_and_their_boxes_alike():
    sheet = pairs(1)[0].sheets[0]
    still, moved = words(sheet), words(sheet, Look(1, -1, 240))
    for one, other in zip(still, moved, strict=True):
        assert (other.anchor[0] - one.anchor[0], other.anchor[1] - one.anchor[1]) == (1, -1)
    assert (np.asarray(draw(sheet, Look(paper_level=240)))[0, 0] == 240).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"paper": "huge"}, "unknown paper 'huge'; there are small, large"),
        ({"split": "pairs"}, "unknown split 'pairs'"),
        ({"kinds": ()}, "pages are form, table, invoice, not nothing"),
        ({"kinds": ("letter",)}, "not letter"),
        ({"paraphrases": "all"}, "there are seen, held_out"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        pairs(1, **wrong)


def test_small_paper_says_when_it_is_out_of_pages(monkeypatch):
    monkeypatch.setattr("mllm_align.data.world.documents.asking.MOST_TRIES", 200)
    with pytest.raises(ValueError, match=r"\d+ pairs of validation are all that small paper has"):
        pairs(20_000, "validation", kinds=("invoice",))
