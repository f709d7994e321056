"""`data clip-blind` on pictures: what it writes, prints and refuses, the contact sheet, and the still-blind rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_align.cli import main
from mllm_align.data.mine.alike_pairs import Found, TilePairs
from mllm_align.data.mine.blind_answers import with_answers
from mllm_align.data.mine.contact_sheet import write_contact_sheet
from mllm_align.data.mine.encoder import ImageEmbedder
from mllm_align.data.mine.still_blind import still_blind
from runs import picture
from tiny_encoders import naive, save_encoder

COUNT = 16


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_encoder(name, folder / name) for name in ("clip", "dinov2", "siglip")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "Bilder ü"
    images.mkdir()
    for number in range(COUNT):
        picture(number).save(images / f"{number:02d} <é>.png")
    return images


def command(encoders: dict[str, Path], images: Path, output: Path, *options: Any) -> int:
    models = ["--look-alike", encoders["clip"], "--meaning", encoders["dinov2"], "--repeated", 1]
    return main(["data", "clip-blind", *map(str, [images, "--output", output, *models, *options])])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_of_pictures(
    encoders: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "broken.png").write_bytes(b"no")
    output = tmp_path / "out.jsonl"
    pictures = [picture(number) for number in range(COUNT)]
    visual, semantic = (naive(name, encoders[name], pictures).numpy() for name in ("clip", "dinov2"))
    upper = np.triu_indices(COUNT, 1)
    alike, same = (visual @ visual.T)[upper], (semantic @ semantic.T)[upper]
    above, below = np.quantile(alike, 0.6), np.quantile(same, 0.5)
    options = ["--above", above, "--below", below, "--per-image", COUNT, "--still", encoders["siglip"]]
    assert command(encoders, folder, output, *options) == 0
    said = capsys.readouterr().out
    expected = {
        (int(one), int(two))
        for one, two, first, second in zip(*upper, alike, same, strict=True)
        if first > above and second < below
    }
    rows = read(output)
    assert {(int(row["made_of"][:2]), int(row["contrast_made_of"][:2])) for row in rows} == expected
    assert len(expected) > 5
    for row in rows:
        one, two = int(row["made_of"][:2]), int(row["contrast_made_of"][:2])
        assert row["similarity_visual"] == pytest.approx(visual[one] @ visual[two], abs=2e-3)
        assert row["similarity_semantic"] == pytest.approx(semantic[one] @ semantic[two], abs=2e-3)
        assert (tmp_path / row["image"]).is_file()
        assert row["encoder_semantic"].startswith("dinov2 ")
        assert row["encoder_semantic"].endswith(" auto float32")
    assert "17 images, 16 different ones that both encoders read" in said
    assert f"{int((alike > above).sum())} pairs alike, {len(expected)} of them unlike in meaning" in said
    assert f"{len(expected)} have no chosen and rejected text" in said
    assert f"contact sheet of {len(expected)} pairs: {tmp_path / 'out.html'}" in said
    third = naive("siglip", encoders["siglip"], pictures).numpy()
    still = sum(float(third[one] @ third[two]) > round(float(above), 6) for one, two in expected)
    assert f"siglip finds {still} of {len(expected)} pairs alike" in said
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["problems"] == {"look_alike": 1, "meaning": 1}
    before = output.read_bytes()
    assert command(encoders, folder, output, *options) == 0  # nothing is left to do
    assert output.read_bytes() == before
    # The same of vectors that were made before, searched where it is told.
    devices = []

    class Watched(TilePairs):
        def __call__(self, unit: int) -> Iterator[Found]:
            devices.append(self.device)
            return super().__call__(unit)

    monkeypatch.setattr("mllm_align.data.mine.clip_blind.TilePairs", Watched)
    made = [tmp_path / "out.jsonl.work" / f"vectors-{side}" for side in ("look_alike", "meaning")]
    given = [*options[:6], "--device", "cpu:0", "--vectors", *made]
    assert command(encoders, folder, tmp_path / "again.jsonl", *given) == 0
    assert set(devices) == {"cpu:0"}
    assert (tmp_path / "again.jsonl").read_bytes() == before


def test_what_is_refused(
    encoders: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"

    def refused(*options: Any, output: Path = out) -> str:
        assert command(encoders, folder, output, *options) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "above is a cosine" in refused("--above", 2)
    assert "rows are written to" in refused(output=tmp_path / "out.txt")
    assert "has no column 'caption'" in refused("--texts", "caption")
    assert "holds no embeddings" in refused("--vectors", folder, folder)
    assert "there is no folder" in refused("--meaning", tmp_path / "none")
    assert "neither a model's folder nor" in refused("--meaning", "nobody/none")
    with pytest.raises(SystemExit):
        command(encoders, folder, out, "--device", "gpu")
    assert "argument --device: 'gpu' cannot be used" in capsys.readouterr().err
    assert not out.exists()
    assert command(encoders, folder, out, "--above", -1, "--below", 1) == 0
    (tmp_path / "out.html").write_text("mine")
    assert "out.html is there with another content and is kept" in refused("--above", -1, "--below", 1)
    assert (tmp_path / "out.html").read_text() == "mine"
    assert command(encoders, folder, out, "--above", -1, "--below", 1, "--overwrite") == 0
    assert "<article>" in (tmp_path / "out.html").read_text()


def test_no_pair_says_what_the_cosines_are(
    encoders: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--above", 1, "--still", encoders["siglip"]]
    assert command(encoders, folder, tmp_path / "out.parquet", *options) == 0
    said = capsys.readouterr().out
    assert "0 pairs with at most 5 of one image" in said
    assert "see --above-share" in said
    assert "there is no pair" in said
    assert "No pair was found." in (tmp_path / "out.html").read_text()


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_sheet_holds_all_that_it_shows(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>\"' onload=x &.png"
    row = {
        "image": Image.new("RGB", (900, 300), "red"),
        "contrast_image": tmp_path / "gone.png",
        "made_of": name,
        "contrast_made_of": name,
        "chosen": "<i>red</i>",
        "similarity_visual": 0.98765,
        "similarity_semantic": 0.12345,
    }
    encoder = {"encoder": "<b>clip</b>"}
    report = {
        "encoders": {"look_alike": encoder, "meaning": encoder},
        "bounds": {"above": 0.95, "below": 0.6},
        "pairs": 7,
        "compared": 9,
    }
    assert write_contact_sheet([row], tmp_path / "sheet.html", report) == 1
    text = (tmp_path / "sheet.html").read_text()
    page = Page(text)
    assert not {"script", "i", "link"} & {tag for tag, _ in page.tags}
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image.keys() == {"loading", "alt", "src"}
    assert image["alt"] == name
    assert (image["src"] or "").startswith("data:image/jpeg;base64,")
    for shown in (name, "<i>red</i>", "0.988", "0.123", "1 of 7 pairs among 9 images", "<b>clip</b>", "gone.png"):
        assert shown in page.text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    write_contact_sheet([row], tmp_path / "sheet.html", report)  # the same again
    with pytest.raises(FileExistsError, match="another content"):
        write_contact_sheet([], tmp_path / "sheet.html", report)


def test_still_blind_counts_the_pairs_that_an_encoder_finds_alike(encoders: dict[str, Path]) -> None:
    pictures = [picture(number) for number in range(COUNT)]
    vectors = naive("siglip", encoders["siglip"], pictures).numpy()
    cosines = [float(vectors[number] @ vectors[number + 1]) for number in range(0, COUNT, 2)]
    rows: list[dict[str, Any]] = [
        {"image": pictures[number], "contrast_image": pictures[number + 1]} for number in range(0, COUNT, 2)
    ]
    rows[3:3] = [{"image": pictures[0], "contrast_image": "gone.png"}, {"image": pictures[0]}]
    bound = float(np.median(cosines))
    found = still_blind(rows, ImageEmbedder(encoders["siglip"]), bound, batch_size=3)
    assert np.allclose(found.cosines, cosines, atol=1e-5)
    assert (found.pairs, found.alike, found.share) == (8, 4, 0.5)
    assert found.problems.counts == {"missing file": 1, "damaged image": 1}
    assert found.as_dict()["cosines"]["50%"] == pytest.approx(bound, abs=1e-3)
    assert np.isnan(still_blind([], ImageEmbedder(encoders["siglip"])).share)
    with pytest.raises(ValueError, match="above is a cosine"):
        still_blind(rows, ImageEmbedder(encoders["siglip"]), 1.2)


def test_a_model_answers_where_texts_are_missing(
    encoders: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--above", -1, "--below", 1, "--per-image", 1, "--answer", "demo-base", "--prompt", "Which colour?"]
    assert command(encoders, folder, output, *options) == 0
    assert "the model that answers: t" in capsys.readouterr().out
    rows = read(output)
    outcome = json.loads((tmp_path / "out.jsonl.report.json").read_text())["speaker"]["outcome"]
    assert sum(outcome.values()) == len(rows)
    assert outcome.get("two answers", 0) == sum(row.get("chosen") is not None for row in rows)


class Colours:
    """Names the colour of a picture; of a grey one it says nothing."""

    identity = "colours"
    asked = 0

    def __call__(self, asks: Any, max_new_tokens: int) -> list[str]:
        Colours.asked += len(asks)
        names = {(255, 0, 0): "Red.", (0, 0, 255): "blue ", (128, 128, 128): " "}
        return [f"{ask.prompt} {names[ask.images[0].getpixel((0, 0))]}".removeprefix("Q ") for ask in asks]


def test_two_different_answers_are_texts_and_others_are_counted(tmp_path: Path) -> None:
    red, blue, grey = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", (128, 128, 128)))
    own = {"prompt": "Q", "chosen": "mine", "rejected": "yours", "image": red, "contrast_image": blue}
    pairs = [(red, blue), (red, red), (blue, grey), (red, "gone.png")]
    rows = [own, *({"prompt": "Q", "image": one, "contrast_image": other} for one, other in pairs)]
    for _ in range(2):
        made, report = with_answers(rows, Colours(), tmp_path / "work", progress=False)
        assert made[0] == own
        assert made[1] == rows[1] | {"chosen": "Red.", "rejected": "blue", "texts_by": "colours"}
        assert made[2:] == rows[2:]
        assert report["outcome"] == {
            "two answers": 1,
            "the same answer twice": 1,
            "no answer": 1,
            "an image that cannot be read": 1,
        }
    assert Colours.asked == 6  # the second time nothing was left to do
