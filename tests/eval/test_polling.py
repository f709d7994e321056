"""Polls from annotations, and questions of mined pairs: as published, balanced, and read back by the benchmarks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align.data.schema import DataError
from mllm_align.data.world import pair_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvp import MMVP
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.mined_pairs import write_mined_pairs
from mllm_align_eval.polling import REGIMES, TEMPLATE, PollImage, poll_questions, read_objects, worded, write_polls
from mllm_align_eval.run import benchmark_items

# The more often the earlier in the alphabet; "a" and "b" always come together, "e" and "f" too.
IMAGES = [
    *(PollImage(f"{n}.jpg", ("c", "a", "b")) for n in range(4)),
    *(PollImage(f"{n}.jpg", ("e", "f", "c")) for n in range(4, 6)),
    PollImage("few.jpg", ("a", "z")),
]


def absent(questions: list[dict[str, Any]]) -> list[str]:
    return [q["text"].split()[3] for q in questions if q["label"] == "no"]


@pytest.mark.parametrize("regime", REGIMES)
def test_polls_are_balanced_and_true(regime: str) -> None:
    questions = poll_questions([*IMAGES, PollImage("more.jpg", ("g", "h", "i", "j"))], regime, num_images=None)
    assert [q["question_id"] for q in questions] == list(range(1, 7 * 6 + 1))
    assert [q["label"] for q in questions] == ["yes", "no"] * 21
    objects = {image.image: image.objects for image in [*IMAGES, PollImage("more.jpg", ("g", "h", "i", "j"))]}
    for image in {q["image"] for q in questions}:
        own = [q for q in questions if q["image"] == image]
        yes = [q["text"].split()[3] for q in own if q["label"] == "yes"]
        assert yes == list(objects[image][:3])
        assert not set(absent(own)) & set(objects[image])
        assert len(set(absent(own))) == 3
    assert "few.jpg" not in {q["image"] for q in questions}


def test_regimes_choose_what_they_say() -> None:
    images = [*IMAGES, PollImage("last.jpg", ("b", "e", "g"))]
    popular = poll_questions(images, "popular", num_images=None)
    # c (6), a (4) and f (2) are the most frequent objects that are not in the last image, in this order.
    assert absent([q for q in popular if q["image"] == "last.jpg"]) == ["c", "a", "f"]
    adversarial = poll_questions(images, "adversarial", num_images=None)
    # b comes with a and c; then e with f; g with nothing else that is absent and left: one is drawn.
    first, second, third = absent([q for q in adversarial if q["image"] == "last.jpg"])
    assert first in ("a", "c")
    assert second in ("c", "f")
    assert third not in {"b", "e", "g", first, second}
    drawn = [tuple(absent(poll_questions(images, "random", num_images=None, seed=seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_same_images_in_every_regime() -> None:
    polled = [{q["image"] for q in poll_questions(IMAGES, regime, num_images=3, per_image=1)} for regime in REGIMES]
    assert len(polled[0]) == 3
    assert polled[0] == polled[1] == polled[2]


def test_from_coco_to_the_benchmark(tmp_path: Path) -> None:
    names = ["a", "b", "c", "e", "f"]
    coco = {
        "images": [{"id": n, "file_name": image.image} for n, image in enumerate(IMAGES[:6])],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "category_id": names.index(name)}
            for n, image in enumerate(IMAGES[:6])
            for name in (*image.objects, image.objects[0])
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    lines = [{"image": image.image, "objects": [*image.objects, image.objects[0]]} for image in IMAGES[:6]]
    (tmp_path / "objects.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = read_objects(tmp_path / "instances.json")
    assert images == read_objects(tmp_path / "objects.jsonl") == IMAGES[:6]
    with pytest.raises(ValueError, match="every object of the collection is in it or was asked about"):
        write_polls(images, tmp_path / "pope", num_images=None)
    assert not (tmp_path / "pope").exists()
    write_polls(images, tmp_path / "pope", num_images=None, per_image=2)
    items = POPE.read(tmp_path / "pope", PictureFolder(None, "own"))
    assert Counter(item.split for item in items) == dict.fromkeys(REGIMES, 24)
    with pytest.raises(FileExistsError, match=r"coco_pope_random.json exists"):
        write_polls(images, tmp_path / "pope", num_images=None, per_image=2)


def test_what_is_no_annotation(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "objects": "dog"}')
    with pytest.raises(ValueError, match="has no 'annotations': not a file of COCO instances"):
        read_objects(tmp_path / "a.json")
    with pytest.raises(ValueError, match="line 1: 'objects' must be a list of names"):
        read_objects(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no regime 'hard'"):
        poll_questions(IMAGES, "hard")
    with pytest.raises(ValueError, match=r"6 of 7 images have 3 .* wanted are 500: .*\(--num-images 6\).*--per-image"):
        poll_questions(IMAGES, "random")
    with pytest.raises(ValueError, match="0 of 7 images have 9 objects or more; wanted are 500: ask about fewer"):
        poll_questions(IMAGES, "random", per_image=9)
    with pytest.raises(ValueError, match="must be at least 1, not 0 and 500"):
        poll_questions(IMAGES, "random", per_image=0)


def test_the_command_says_how_many_it_asks_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "poll", "--help"])
    assert "as many with no (default: 3, as POPE)" in " ".join(capsys.readouterr().out.split())
    lines = [json.dumps({"image": image.image, "objects": list(image.objects)}) for image in IMAGES[:6]]
    (tmp_path / "objects.jsonl").write_text("\n".join(lines))
    poll = ("eval", "poll", str(tmp_path / "objects.jsonl"), "--per-image", "2", "--output", str(tmp_path / "mine"))
    assert main(poll) == 2
    assert "6 of 6 images have 2 objects or more; wanted are 500: ask about at most 6 (--num-images 6)" in (
        capsys.readouterr().err
    )
    assert main([*poll, "--num-images", "4"]) == 0
    *files, following = capsys.readouterr().out.splitlines()
    assert len(files) == 3
    assert following.startswith(
        f"next: mllm-align eval run MODEL --benchmark pope --data {tmp_path / 'mine'} --images"
    )
    assert len(benchmark_items("pope", str(tmp_path / "mine"))) == 3 * 4 * 4


def test_mined_pairs_become_questions_that_a_constant_answer_never_gets(tmp_path: Path) -> None:
    rows = pair_rows(12)
    assert write_mined_pairs(rows, tmp_path / "mmvp") == 12
    items = MMVP.read(tmp_path / "mmvp", PictureFolder(tmp_path / "mmvp" / "images", "own"))
    assert len(items) == 24
    for row, one, two in zip(rows, items[::2], items[1::2], strict=True):
        assert one.pair == two.pair
        assert {one.answer, two.answer} == {"(a)", "(b)"}
        assert one.labels[one.choices.index(one.answer)] == row["chosen"]
        assert two.labels[two.choices.index(two.answer)] == row["rejected"]
        assert one.pictures[0].load().size == row["image"].size
    assert len({one.answer for one in items[::2]}) == 2
    with pytest.raises(FileExistsError, match=r"Questions.csv exists"):
        write_mined_pairs(rows, tmp_path / "mmvp")
    with pytest.raises(DataError, match="two different answers"):
        write_mined_pairs([{**rows[0], "rejected": rows[0]["chosen"]}], tmp_path / "same")
    with pytest.raises(DataError, match="one image and one contrast image"):
        write_mined_pairs([{**rows[0], "contrast_image": None}], tmp_path / "one")


def test_articles_are_those_of_the_published_files():
    assert worded(TEMPLATE, "umbrella") == "Is there an umbrella in the image?"
    assert worded(TEMPLATE, "dining table") == "Is there a dining table in the image?"


def test_annotations_that_lack_something(tmp_path):
    whole = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cup"}], "annotations": []}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="image 1 has no file_name: add it"):
        read_objects(path)
    path.write_text(json.dumps(whole | {"annotations": [{"image_id": 1, "category_id": 9}]}))
    with pytest.raises(ValueError, match="an annotation of category 9, which the file's categories do not name"):
        read_objects(path)
