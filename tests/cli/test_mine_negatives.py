"""`data mine-negatives`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mllm_align.cli import main
from mllm_align.contract import Embedding, Feature
from mllm_align.encoding import save_embedding
from tiny import save_tiny
from tiny_duals import captioned, save_dual
from tiny_encoders import save_encoder

COMMAND = ["data", "mine-negatives"]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = []
    for number, row in enumerate(captioned(16)):
        row["image"].save(tmp_path / f"{number}.png")
        lines.append({"id": str(number), "image": f"{number}.png", "prompt": "What?", "caption": row["chosen"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "rows.jsonl")


def test_an_encoder_mines(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = str(save_dual("siglip", tmp_path / "model")), tmp_path / "out.jsonl"
    command = [*COMMAND, rows, "--output", str(output), "--model", model, "--per-row", "2", "--same-picture", "2"]
    assert main([*command, "--contrast-images"]) == 0
    told = capsys.readouterr().out
    assert "16 rows, 16 kept" in told
    assert "32 negatives, of 16 pictures and 16 texts" in told
    assert "rows without a negative: 0 (0.0%)" in told
    assert "candidates dropped for known positive: " in told
    assert "16 contrast images" in told
    found = [json.loads(line) for line in output.read_text().splitlines()]
    captions = {row["caption"] for row in found}
    assert all(set(row["negatives"]) < captions - {row["caption"]} and len(row["negatives"]) == 2 for row in found)
    assert all(row["contrast_image"] != row["image"] for row in found)
    before = output.read_bytes()
    assert main([*command, "--contrast-images"]) == 0  # nothing is left to do
    assert output.read_bytes() == before


def test_vectors_of_another_encoder(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(16, 5))
    np.savez(tmp_path / "both.npz", images=vectors, texts=vectors)
    both = str(tmp_path / "both.npz")
    command = [*COMMAND, rows, "--image-vectors", both, "--text-vectors", both, "--relative-margin", "0.3"]
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert "candidates dropped for relative margin: " in capsys.readouterr().out
    scores = [json.loads(line)["negatives_scores"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(score <= 0.7 + 1e-6 for own in scores for score in own)


def test_what_takes_the_candidates_is_told(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures in two heaps, each of which is one picture to the encoder; long texts are not mined."""
    rng = np.random.default_rng(1)
    images = np.repeat(np.eye(5)[:2], 8, axis=0) + 1e-3 * rng.normal(size=(16, 5))
    np.savez(tmp_path / "both.npz", images=images, texts=images + 0.1 * rng.normal(size=(16, 5)))
    both = str(tmp_path / "both.npz")
    lines = [json.loads(line) for line in Path(rows).read_text().splitlines()]
    for line in lines[::2]:
        line["caption"] += " indeed"
    Path(rows).write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [*COMMAND, rows, "--image-vectors", both, "--text-vectors", both, "--output"]
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    hint = "most candidates are texts of pictures that are taken for the same one (cosine from 0.99): raise --same"
    assert hint in capsys.readouterr().out
    assert main([*command, str(tmp_path / "all.jsonl"), "--same-picture", "2", "--max-words", "5"]) == 0
    told = capsys.readouterr().out
    assert "taken for the same one" not in told
    assert "of more than 5 words, and not mined: 8" in told
    found = [json.loads(line)["negatives"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [len(own) for own in found] == [3] * 16
    assert not any("indeed" in text for own in found for text in own)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "name one encoder: --model, or --image-vectors and --text-vectors"),
        (["--image-vectors", "a.npy"], "name one encoder"),
        (["--model", "nowhere/no-model"], "nowhere/no-model is neither a model's folder nor a model on the Hub"),
        (["--per-row", "0"], "per_row must be at least 1"),
        (["--max-words", "0"], "max_words must be at least 1"),
        (["--image-vectors", "a.npy", "--text-vectors", "a.npy"], "there is no file of vectors a.npy"),
    ],
)
def test_what_is_refused(
    given: list[str], told: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, rows, "--output", str(tmp_path / "out.jsonl"), *given]) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_was_trained_to_embed(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It mines by itself as from the vectors that `encode` writes, which are found by name whatever their order."""
    folder = save_tiny("llava", tmp_path / "trained")
    instructed = {
        "image": Feature("image", "embedding", "image", pooling="last", prompt="The picture:"),
        "text": Feature("text", "embedding", "caption", pooling="last", prompt="The text:"),
    }
    save_embedding(Embedding(instructed, {}), folder)
    found = {}
    command = [*COMMAND, rows, "--same-picture", "2", "--output"]
    assert main([*command, str(tmp_path / "one.jsonl"), "--model", str(folder)]) == 0
    captions = sorted(json.loads(line)["caption"] for line in Path(rows).read_text().splitlines())
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    vectors = str(tmp_path / "vectors.npz")
    encode = ["encode", str(folder), "--images", str(tmp_path), "--texts", str(tmp_path / "captions.txt")]
    assert main([*encode, "--output", vectors, "--dtype", "float32"]) == 0
    both = ["--image-vectors", vectors, "--text-vectors", vectors]
    assert main([*command, str(tmp_path / "other.jsonl"), *both]) == 0
    for name in ("one", "other"):
        found[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one["negatives_scores"], other["negatives_scores"], atol=1e-5)
        assert one["negatives"] == other["negatives"]
    assert found["one"][0]["negatives_by"] == ["trained"] * 3
    (tmp_path / "captions.txt").write_text("\n".join(captions[1:]))
    assert main([*encode, "--output", str(tmp_path / "less.npz"), "--dtype", "float32"]) == 0
    capsys.readouterr()
    less = ["--image-vectors", vectors, "--text-vectors", str(tmp_path / "less.npz")]
    assert main([*command, str(tmp_path / "third.jsonl"), *less]) == 2
    assert f"has no vector of the text {captions[0]!r}: encode it too" in capsys.readouterr().err


def test_an_encoder_without_texts_is_refused(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_encoder("dinov2", tmp_path / "model"))
    assert main([*COMMAND, rows, "--output", str(tmp_path / "out.jsonl"), "--model", model]) == 2
    assert "embeds no texts beside images: name a dual encoder" in capsys.readouterr().err
