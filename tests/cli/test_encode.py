"""`encode` and `export --sentence-transformers`: what they write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mllm_align.cli import main
from mllm_align.contract import EmbeddingHead
from mllm_align.contract.embedding import Embedding
from mllm_align.encoding import Encoder, load_encoder, save_embedding
from mllm_align.models import load_model
from mllm_align.objectives import InfoNCE
from runs import picture
from tiny import save_tiny

TEXTS = ["a red circle", "zwei Sterne ü"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny("llava", tmp_path_factory.mktemp("model") / "trained")
    features = Encoder.zero_shot(*load_model(folder), image_prompt="What?", text_prompt="Say what?").embedding.features
    heads = {side: EmbeddingHead(64, 8) for side in ("image", "text")}
    save_embedding(Embedding(features, heads), folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "Bilder ü"
    (folder / "more").mkdir(parents=True)
    picture(1).save(folder / "b.PNG")
    picture(2).save(folder / "more" / "a.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return file


def test_images_and_texts_to_one_file(
    trained: Path, images: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "vectors.npz"
    command = ["encode", str(trained), "--images", str(images), "--texts", str(texts), "--output", str(output)]
    assert main([*command, "--dimensions", "4"]) == 0
    assert f"2 images and 2 texts, 4 dimensions, in {output}" in capsys.readouterr().out
    assert [file.name for file in output.parent.iterdir()] == ["vectors.npz"]
    found = np.load(output)
    assert found["image_names"].tolist() == ["b.PNG", "more/a.jpg"]
    assert found["texts"].tolist() == TEXTS
    expected = load_encoder(trained).encode([images / "b.PNG", images / "more" / "a.jpg"], TEXTS, dimensions=4)
    assert np.array_equal(found["image_vectors"], expected.images)
    assert np.array_equal(found["text_vectors"], expected.texts)
    before = output.read_bytes()
    assert main(command) == 2
    assert "is there already and is kept" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_model_that_was_not_trained(trained: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "vectors.npz"
    command = ["encode", str(trained), "--zero-shot", "--texts", str(texts), "--output", str(output)]
    assert main([*command, "--text-prompt", "In one word:"]) == 0
    found = np.load(output)
    assert set(found) == {"texts", "text_vectors"}
    expected = Encoder.zero_shot(*load_model(trained), text_prompt="In one word:").encode(texts=TEXTS)
    assert np.array_equal(found["text_vectors"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "v.npz"], "nothing to encode"),
        (["--texts", "TEXTS", "--output", "v.csv"], "output must end in .npz"),
        (["--texts", "nowhere.txt", "--output", "v.npz"], "no texts could be read from 'nowhere.txt'"),
        (["--images", "nowhere", "--output", "v.npz"], "no folder of images at 'nowhere'"),
        (["--texts", "TEXTS", "--output", "v.npz", "--image-prompt", "a"], "has its own prompts"),
        (["--texts", "TEXTS", "--output", "v.npz", "--zero-shot", "--base", "a"], "leave --base out"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, trained: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(texts) if each == "TEXTS" else each for each in arguments]
    place = given.index("--output") + 1
    given[place] = str(tmp_path / given[place])
    assert main(["encode", str(trained), *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "v.npz").exists()


def test_nothing_is_read_where_one_side_cannot_be(
    images: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny("llava", tmp_path / "trained")
    save_embedding(InfoNCE().embedding, folder)
    command = ["encode", str(folder), "--images", str(images), "--texts", str(texts)]
    assert main([*command, "--output", str(tmp_path / "v.npz")]) == 2
    said = capsys.readouterr().err
    assert "this embedding reads a text as the response to a prompt" in said
    assert "batch/s" not in said  # nothing was read
    (images / "broken.png").write_text("no picture")
    assert main([*command, "--output", str(tmp_path / "v.npz")]) == 2
    assert "broken.png' is no image that can be read" in capsys.readouterr().err


def test_empty_inputs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none.txt").write_text("\n \n")
    for flag, name, message in (("--images", "none", "no image in"), ("--texts", "none.txt", "is empty: write one")):
        given = [flag, str(tmp_path / name), "--output", str(tmp_path / "v.npz")]
        assert main(["encode", str(trained), *given]) == 2
        assert message in capsys.readouterr().err


def test_export_for_sentence_transformers(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "st"
    assert main(["export", str(trained), str(target), "--sentence-transformers", "--dimensions", "4"]) == 0
    assert str(target) in capsys.readouterr().out
    types = [each["type"] for each in json.loads((target / "modules.json").read_text())]
    assert types[0] == "sentence_transformers.base.modules.router.Router"
    assert json.loads((target / "text_head" / "config.json").read_text())["out_features"] == 4
    for wrong in (["--merge", "--sentence-transformers"], ["--dimensions", "4"]):
        assert main(["export", str(trained), str(tmp_path / "other"), *wrong]) == 2
        assert "--sentence-transformers" in capsys.readouterr().err
