import pytest

from eval_items import said
from mllm_align_eval.answers import parse
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvp import ORIGIN, mmvp_items, read_questions
from mllm_align_eval.measures import measures

NO_PICTURES = PictureFolder(None, ORIGIN)
HEAD = "Index,Question,Options,Correct Answer\n"


@pytest.fixture(scope="module")
def items(data_dir):
    return mmvp_items(data_dir / "mmvp", NO_PICTURES)


def test_the_real_file(items):
    assert len(items) == 300
    assert len({item.pair for item in items}) == 150
    assert items[0].prompt == "Are the butterfly's wings closer to being open or closed? (a) Open (b) Closed"
    assert items[0].labels == ("Open", "Closed")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    assert all(a.pair == b.pair == a.cluster for a, b in pairs)
    # Where both rows ask with the same options, the answers differ.
    assert all(a.answer != b.answer for a, b in pairs if a.prompt == b.prompt)


def test_every_option_is_read_as_its_letter(items):
    for item in items:
        for letter, label in zip(item.choices, item.labels, strict=True):
            assert parse(letter, item).choice == letter
            assert parse(f"{letter} {label}", item).choice == letter
            if "Happy Easter" not in label:  # the options of this pair differ in punctuation alone
                assert parse(label, item).choice == letter, label


def test_corrected_answers(data_dir, items):
    corrected = mmvp_items(data_dir / "mmvp", NO_PICTURES, corrected=True)
    changed = [old.id for old, new in zip(items, corrected, strict=True) if old.answer != new.answer]
    assert changed == ["mmvp/99", "mmvp/100", "mmvp/279", "mmvp/280"]


def test_a_constant_answer_gets_no_pair(items):
    found = measures(items, {("logprob", "right"): [said(i, "(a)", scores=(-1.0, -2.0)) for i in items]})
    assert found["mmvp/pair_acc"].metric.value() <= 0.02
    assert found["mmvp/pair_item_acc"].metric.value() == pytest.approx(0.5, abs=0.02)
    assert baselines(items)["chance"]["mmvp/pair_acc"] == 0.25


def test_missing_images(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"300 of 300 images .*first: 1.jpg.*huggingface"):
        mmvp_items(data_dir / "mmvp", PictureFolder(tmp_path, ORIGIN))


@pytest.mark.parametrize(
    "row", ["1,Open?,open or closed,(a)", "1,Open?,(a) Open (b) Closed,(c)", "x,Open?,(a) O (b) C,(a)"]
)
def test_a_row_that_is_no_question(tmp_path, row):
    path = tmp_path / "Questions.csv"
    path.write_text(HEAD + row + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_questions(path)


def test_another_file(tmp_path):
    path = tmp_path / "Questions.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has not the columns Index"):
        read_questions(path)
