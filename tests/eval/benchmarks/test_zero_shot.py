"""Zero-shot classification: both layouts, means of templates and ranks as loops, ties, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from eval_encoders import Constant, Drawn, Told
from mllm_align.cli import main
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.zero_shot import SIMPLE, ZERO_SHOT
from mllm_align_eval.runner import is_askable
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import loaded, similarity_rows

CLASSES = ("fire_truck", "cat", "dog", "cup", "tree", "car", "hat")
EACH = 3


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for number in range(EACH):
            Image.new("RGB", (4, 4), (place, number, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def read(folder):
    return ZERO_SHOT.read(folder, PictureFolder(folder, "nowhere"))


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def scored_by(encoder, items):
    return values(measures_of(ZERO_SHOT, items, similarity_rows(encoder, items), "strict"))


def test_a_folder_per_class(folder):
    items = read(folder)
    assert len(items) == len(CLASSES) * EACH
    assert items[0].choices == ("car", "cat", "cup", "dog", "fire truck", "hat", "tree")
    truck = next(item for item in items if item.kind == "fire_truck")
    assert (truck.id, truck.answer, truck.cluster) == ("zero_shot/fire_truck/0.png", "fire truck", "fire_truck/0.png")
    assert truck.truth["templates"] == SIMPLE
    assert len(SIMPLE) == 7
    assert not is_askable(truck, "logprob", "right")


def test_a_table_names_and_templates_of_ones_own(folder):
    (folder / "images.csv").write_text("image,class\ncat/0.png,n1\ndog/1.png,n2\n")
    names = {"n1": "tabby", "n2": "dog", "n3": "cow"}
    (folder / "classes.json").write_text(json.dumps(names))
    (folder / "templates.txt").write_text("a photo of a {}.\n\nthe {}, a {}\n")
    items = read(folder)
    assert [(item.cluster, item.answer, item.kind) for item in items] == [
        ("cat/0.png", "tabby", "n1"),
        ("dog/1.png", "dog", "n2"),
    ]
    assert items[0].choices == ("tabby", "dog", "cow")
    seen = []
    similarity_rows(Told(lambda picture: (1, 0), lambda text: seen.append(text) or (1, 0)), items)
    assert seen == [
        text.replace("{}", name) for name in names.values() for text in ("a photo of a {}.", "the {}, a {}")
    ]


def test_metrics_are_those_of_a_loop(folder):
    (folder / "dog" / "0.png").unlink()
    items, encoder = read(folder), Drawn(6, seed=3)
    first, five, by_class = [], [], {}
    for item in items:
        image = encoder.images([item.pictures[0]])[0]
        scores = []
        for name in item.choices:
            mean = encoder.texts([template.format(name) for template in SIMPLE]).mean(axis=0)
            scores.append(image @ mean / np.linalg.norm(mean))
        rank = sum(score >= scores[item.choices.index(item.answer)] for score in scores)
        first.append(rank == 1)
        five.append(rank <= 5)
        by_class.setdefault(item.kind, []).append(rank == 1)
    found = scored_by(encoder, items)
    assert found["zero_shot/top1_acc"] == pytest.approx(np.mean(first))
    assert found["zero_shot/top5_acc"] == pytest.approx(np.mean(five))
    assert found["zero_shot/macro_acc"] == pytest.approx(np.mean([np.mean(each) for each in by_class.values()]))
    assert 0 < np.mean(first) < np.mean(five) < 1


def test_constant_embeddings_get_nothing_and_perfect_ones_all(folder):
    items = read(folder)
    constant = scored_by(Constant(), items)
    assert [constant[f"zero_shot/{name}"] for name in ("top1_acc", "top5_acc", "macro_acc", "images/tied")] == [
        0,
        0,
        0,
        1,
    ]
    order = [name.replace("_", " ") for name in CLASSES]
    perfect = Told(
        lambda picture: np.eye(len(CLASSES))[loaded(picture).getpixel((0, 0))[0]],
        lambda text: next(np.eye(len(CLASSES))[place] for place, name in enumerate(order) if f" {name}" in text),
    )
    found = scored_by(perfect, items)
    assert [found[f"zero_shot/{name}"] for name in ("top1_acc", "top5_acc", "macro_acc", "images/tied")] == [
        1,
        1,
        1,
        0,
    ]


def test_few_classes_have_no_top_five(folder):
    (folder / "images.csv").write_text("image,class\ncat/0.png,cat\ndog/1.png,dog\n")
    assert "zero_shot/top5_acc" not in scored_by(Drawn(), read(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images.csv": "file,label\na.png,cat\n"}, r"images\.csv, line 2: no image and class"),
        ({"images.csv": "image,class\ncat/0.png,cat\n"}, "one class alone, 'cat': there is nothing to choose from"),
        ({"classes.json": '{"cat": "cat"}'}, r"classes\.json has no name for 6 classes \(first: 'car'\)"),
        ({"classes.json": '["cat"]'}, "not an object of names by class"),
        ({"classes.json": json.dumps(dict.fromkeys(CLASSES, "thing"))}, "two classes are called 'thing'"),
        ({"templates.txt": "a photo\n"}, r"templates\.txt: a template needs \{\} where the name goes, got 'a photo'"),
        ({"templates.txt": "\n"}, "got 'no line'"),
    ],
)
def test_what_is_refused(folder, files, message):
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image in .*: needed is a folder per class, or images\.csv"):
        read(tmp_path)
    (tmp_path / "images.csv").write_text("image,class\na.png,cat\nb.png,dog\n")
    with pytest.raises(FileNotFoundError, match="2 of 2 images are not in"):
        read(tmp_path)


def test_from_the_command_line(folder, monkeypatch, capsys):
    monkeypatch.setattr("mllm_align_eval.encoders.encoder_of", lambda name: Constant())
    assert main(["eval", "score", "zero_shot", "--data", str(folder), "--dual-encoder", "any"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "zero_shot/top1_acc 0.0 0.0 to" in said
    assert "Ties, which count as wrong: Zero-shot classification 21 of 21." in said
