from collections import Counter

import pytest
from PIL import Image

from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.pope import SPLITS, pope_items, read_questions

LINE = '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}\n'


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """Empty files by the names of the images."""
    images = tmp_path_factory.mktemp("images")
    for row in read_questions(data_dir / "pope" / "coco_pope_random.json"):
        (images / row["image"]).touch()
    return images


@pytest.fixture(scope="module")
def items(data_dir, folder):
    return pope_items(folder, data_dir / "pope")


def test_the_real_files(items):
    assert Counter(item.split for item in items) == dict.fromkeys(SPLITS, 3000)
    assert Counter((item.split, item.answer) for item in items) == {
        (split, answer): 1500 for split in SPLITS for answer in ("yes", "no")
    }
    assert len({item.cluster for item in items}) == 500
    assert len({(item.cluster, item.prompt) for item in items}) == 5127
    assert len({item.id for item in items}) == 9000
    assert items[0].prompt == "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."


def test_baselines_of_the_real_files(items):
    found = baselines(items)
    assert found["always yes"]["pope/popular_acc"] == 0.5
    assert found["text only"]["pope/popular_acc"] == pytest.approx(0.868, abs=0.015)
    assert found["text only"]["pope/random_acc"] == pytest.approx(0.695, abs=0.02)


def test_missing_images_are_one_message(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"500 of 500 images are not in .*COCO val2014"):
        pope_items(tmp_path, data_dir / "pope")


def test_missing_annotations(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"coco_pope_random.json: get it from https://github.com/AoiDragon"):
        pope_items(tmp_path, tmp_path)
    monkeypatch.delenv("MLLM_ALIGN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set MLLM_ALIGN_DATA"):
        pope_items(tmp_path)


@pytest.mark.parametrize(
    "bad", ["{broken", '{"image": "a.jpg"}', LINE.replace('"yes"', '"maybe"'), "[1, 2]", '"question_id"']
)
def test_a_line_that_is_no_question(tmp_path, bad):
    path = tmp_path / "coco_pope_random.json"
    path.write_text(LINE + bad.strip() + "\n")
    with pytest.raises(ValueError, match="line 2: not a POPE question"):
        read_questions(path)


def test_an_image_is_read_when_it_is_needed(tmp_path):
    (tmp_path / "coco_pope_random.json").write_text(LINE)
    Image.new("L", (9, 7)).save(tmp_path / "a.jpg")
    (item,) = pope_items(tmp_path, tmp_path, splits=("random",))
    assert (item.load_image().mode, item.load_image().size) == ("RGB", (9, 7))
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.jpg"):
        item.load_image()


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="no split 'hard'"):
        pope_items(tmp_path, tmp_path, splits=("hard",))
