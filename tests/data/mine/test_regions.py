"""Named boxes out of captions: phrases, detectors of real configs, which boxes are kept, the job and its command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import draw_picture
from mllm_align.cli import main
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.detector import Detection, Detector
from mllm_align.data.mine.phrases import phrases_of
from mllm_align.data.mine.regions import RegionOptions, chosen, make_regions
from mllm_align.data.objects import read_objects
from mllm_align.data.schema import parse_row
from tiny_detectors import save_detector


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A large brown dog is sitting on the wooden bench.", ["large brown dog", "wooden bench"]),
        ("Two men and a dog; the dog's leash is red", ["Two men", "dog", "dog's leash", "red"]),
        ("A very old small blue wooden boat", ["small blue wooden boat"]),
        ("The picture shows nothing of it.", ["nothing"]),
        ("A dog, 3 Dogs and a dog", ["dog", "Dogs"]),
        ("", []),
    ],
)
def test_phrases_of_captions(caption: str, expected: list[str]) -> None:
    assert phrases_of(caption) == expected


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "grounding-dino"])
@pytest.mark.parametrize("size", [(64, 64), (96, 48), (40, 100)])
def test_boxes_are_shares_of_the_image(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Against the boxes that the model itself gives out, of an image that OWLv2 pads to a square."""
    detector = Detector(save_detector(kind, tmp_path))
    seen: list[torch.Tensor] = []
    forward = detector._model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append(out.pred_boxes[0])
        return out

    detector._model.forward = watched
    image = draw_picture(*size, (250, 0, 0), 1)
    phrases = ["red ball", "dog"]
    found = detector(image, phrases, 0.0)
    assert len(seen) == (2 if kind == "grounding-dino" else 1)
    assert {each.phrase for each in found} <= set(phrases)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    side = max(size)
    width, height = (side / size[0], side / size[1]) if kind == "owlv2" else (1.0, 1.0)
    given = []
    for x, y, w, h in torch.cat(seen).tolist():
        box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        given.append([min(max(value, 0.0), 1.0) for value in box])
    assert found
    for each in found:
        assert any(list(each.box) == pytest.approx(box, abs=1e-4) for box in given)


def test_what_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a model's folder nor a model on the Hub"):
        Detector(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(DataError, match="a llama, which finds no things by their names"):
        Detector(tmp_path)


def test_which_boxes_are_kept() -> None:
    found = [
        Detection("dog", 0.9, (0.0, 0.0, 0.5, 0.5)),
        Detection("animal", 0.8, (0.0, 0.0, 0.5, 0.52)),  # the same box
        Detection("dog", 0.7, (0.6, 0.6, 0.9, 0.9)),
        Detection("dog", 0.6, (0.6, 0.0, 0.9, 0.3)),  # a third of one phrase
        Detection("cat", 0.5, (0.3, 0.3, 0.3, 0.9)),  # no area
        Detection("cat", 0.2, (0.1, 0.7, 0.3, 0.9)),  # not above the threshold
        Detection("cat", 0.21, (0.1, 0.7, 0.3, 0.9)),
    ]
    kept = chosen(found, RegionOptions(per_phrase=2, threshold=0.2))
    assert [(each.phrase, each.score) for each in kept] == [("dog", 0.9), ("dog", 0.7), ("cat", 0.21)]


class Scripted:
    """Finds every phrase at a place of its own."""

    identity = "scripted"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def fits(self, phrase: str) -> bool:
        return True

    def __call__(self, image: Image.Image, phrases: Sequence[str], threshold: float = 0.0) -> list[Detection]:
        self.asked.append(list(phrases))
        return [Detection(text, 0.9 - n / 4, (n / 4, 0.0, n / 4 + 0.2, 0.5)) for n, text in enumerate(phrases)]


def rows(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    captions = ("A dog on a bench with a red ball", "It is there", "A tree", "A man")
    for number in range(3):
        draw_picture(60, 40, (0, 90, 0), number).save(folder / f"{number}.png")
    return [
        {
            "id": str(n),
            "image": str(folder / f"{n}.png"),
            "prompt": "Describe.",
            "chosen": text,
            "names": [text.split()[-1], "sky"],
        }
        for n, text in enumerate(captions)
    ]


def test_rows_get_objects(tmp_path: Path) -> None:
    finder = Scripted()
    report = make_regions(rows(tmp_path / "in"), tmp_path / "out.jsonl", finder, progress=False)
    assert finder.asked == [["dog", "bench", "red ball"], ["tree"]]
    assert (report["rows"], report["kept"], report["phrases"], report["regions"]) == (4, 2, 4, 4)
    assert report["filters"] == {"no phrases": 1}
    assert report["problems"]["missing file"]["rows"] == 1
    made = load_rows(tmp_path / "out.jsonl")
    assert [each.text for each in read_objects(made[0]["objects"], 1, "row")] == ["dog", "bench", "red ball"]
    assert made[0]["scores"] == [0.9, 0.65, 0.4]
    again = Scripted()
    options = RegionOptions(threshold=0.5)
    fewer = make_regions(rows(tmp_path / "in"), tmp_path / "out.jsonl", again, options, overwrite=True, progress=False)
    assert again.asked == []
    assert fewer["regions"] == 3
    listed = make_regions(
        rows(tmp_path / "in"), tmp_path / "list.jsonl", finder, RegionOptions("names"), progress=False
    )
    assert finder.asked[2:] == [["ball", "sky"], ["there", "sky"], ["tree", "sky"]][: len(finder.asked) - 2]
    assert listed["kept"] == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(tmp_path / "in")[:3]))
    model = str(save_detector("owlv2", tmp_path / "detector"))
    command = ["data", "regions", str(source), "--output", str(tmp_path / "out.jsonl"), "--detector", model]
    assert main([*command, "--threshold", "0.05"]) in (0, None)
    assert "regions of 4 phrases" in capsys.readouterr().out
    assert main([*command, "--phrases", "absent", "--overwrite"]) == 2
    assert "--phrases absent: the rows have no such column, but id, image" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("options", [{"threshold": 0.01}, {"per_phrase": 0}, {"overlap": 0.0}])
def test_options_without_a_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RegionOptions(**options)


LONG = "red ball " * 15


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "grounding-dino"])
def test_phrases_that_the_detector_cannot_read_are_left_out_and_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = Detector(save_detector(kind, tmp_path / "detector"))
    given = rows(tmp_path / "in")[:3]
    given[0]["names"], given[1]["names"], given[2]["names"] = ["dog", LONG], [LONG], ["dog"]
    options = RegionOptions("names", threshold=0.05, min_regions=0)
    report = make_regions(given, tmp_path / "out.jsonl", detector, options, progress=False)
    assert (report["rows"], report["phrases"]) == (3, 2)
    assert report["too_long"] == {"phrases": 2, "example": LONG}
    assert "2 phrases are longer than the detector reads" in caplog.text
    again = make_regions(given, tmp_path / "out.jsonl", detector, RegionOptions("names"), overwrite=True)
    assert again["filters"]["phrases too long"] == 1


@pytest.mark.parametrize("kind", ["owlv2", "owlvit", "grounding-dino"])
def test_the_longest_phrase_that_fits_is_looked_for(kind: str, tmp_path: Path) -> None:
    """16 tokens, two of them the ends, and the full stop that Grounding DINO's phrases get."""
    detector = Detector(save_detector(kind, tmp_path))
    most = 13 if kind == "grounding-dino" else 14
    words = ["ball"] * most
    assert detector.fits(" ".join(words))
    assert not detector.fits(" ".join([*words, "ball"]))
    detector(draw_picture(64, 64, (0, 90, 0), 1), [" ".join(words), "dog"])


def test_rows_keep_all_that_they_have(tmp_path: Path) -> None:
    given = rows(tmp_path / "in")[:1]
    own = {"box": [0.5, 0.5, 0.9, 0.9], "text": "tree", "class": "plant", "negatives": ["dog"]}
    more = {"rejected": "A cat", "contrast_image": str(tmp_path / "in/1.png"), "objects": [own], "split": 3}
    given[0] |= more
    make_regions(given, tmp_path / "out.jsonl", Scripted(), RegionOptions("names"), progress=False)
    (made,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert made["names"] == ["ball", "sky"]
    assert {name: made[name] for name in ("rejected", "split")} == {"rejected": "A cat", "split": 3}
    assert made["contrast_image"] == "in/1.png"
    assert made["objects"][0] == own
    assert [each["text"] for each in made["objects"]] == ["tree", "ball", "sky"]
    assert made["scores"] == [None, 0.9, 0.65]
    assert set(made) == {*given[0], "scores"}
    # What a second job finds stands behind what the first one found, with its scores.
    second = load_rows(tmp_path / "out.jsonl")
    make_regions(second, tmp_path / "again.jsonl", Scripted(), progress=False)
    (made,) = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [each["text"] for each in made["objects"]] == ["tree", "ball", "sky", "dog", "bench", "red ball"]
    assert made["scores"] == [None, 0.9, 0.65, 0.9, 0.65, 0.4]


def test_scores_of_something_else_are_not_replaced(tmp_path: Path) -> None:
    given = rows(tmp_path / "in")[:3]
    given[0]["scores"] = [1.0, 2.0]
    finder = Scripted()
    report = make_regions(given, tmp_path / "out.jsonl", finder, progress=False)
    assert finder.asked == [["tree"]]
    (example,) = report["problems"]["other scores"]["examples"]
    assert example == "row 0 (id '0'): column 'scores' is not one for each of the row's objects (0); rename it"


def test_an_image_within_a_conversation_becomes_a_column(tmp_path: Path) -> None:
    (first,) = rows(tmp_path / "in")[:1]
    picture = Image.open(first.pop("image"))
    asked = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Describe."}]}
    answers = {"chosen": first.pop("chosen"), "rejected": "A cat"}
    first.pop("prompt")
    whole = {name: [asked, {"role": "assistant", "content": text}] for name, text in answers.items()}
    given = [first | answers | {"prompt": [asked]}, first | whole | {"id": "whole"}]
    make_regions(given, tmp_path / "out.jsonl", Scripted(), progress=False)
    for made, row in zip(load_rows(tmp_path / "out.jsonl"), given, strict=True):
        assert made["names"] == row["names"]
        parsed = parse_row(made)
        assert dict(parsed.responses) == answers
        assert [part["type"] for part in parsed.messages[-1]["content"]] == ["image", "text"]
        assert Path(parsed.images[0]).is_file()
