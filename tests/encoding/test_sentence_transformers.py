"""An exported encoder in sentence-transformers against the encoder itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mllm_align.contract import Embedding, EmbeddingHead
from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.encoding import (
    Encoder,
    export_sentence_transformers,
    load_encoder,
    save_embedding,
    sentence_transformers,
)
from mllm_align.families.image_only import load_processor
from mllm_align.models import load_model
from mllm_align.objectives.pairs import Pairs
from tiny import save_tiny

st = pytest.importorskip("sentence_transformers")

TEXTS = ["a small red circle", "two stars", "a large white square,\nleft of the green star; and much more than that"]
PROMPTS = {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT}


class ImagesAlone:
    """In the place of `AutoProcessor`: where torchvision is missing, the stock processor less its half for video."""

    @staticmethod
    def from_pretrained(name: str, subfolder: str = "", **kwargs: Any) -> Any:
        return load_processor(str(Path(name) / subfolder))


@pytest.fixture(autouse=True)
def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers.base.modules import transformer

    monkeypatch.setattr(transformer, "AutoProcessor", ImagesAlone)


def made(folder: Path, family: str, *, adapter: bool = False, soft: bool = False, **options: Any) -> Path:
    """A model that is called trained, all of it or an adapter that is not at zero, and its embedding."""
    base = save_tiny(family, folder / "base")
    given: dict[str, Any] = {"text": "caption", **PROMPTS, **options}
    pairs = Pairs("Test", **given)
    torch.manual_seed(1)
    pairs.set_widths({feature.name: 64 for feature in pairs.features})
    found = base
    if adapter:
        prompts = [IMAGE_PROMPT, TEXT_PROMPT] if soft else []
        model, processor = load_model(base, use_peft=True, lora_r=4, soft_prompts=prompts)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "trainable_tokens_delta" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        found = folder / "run"
        model.save_pretrained(found)
        processor.save_pretrained(found)
        if soft:
            model.get_base_model().soft_prompts.save(found)
    save_embedding(pairs.embedding, found)
    return found


def check(trained: Path, exported: Path, pictures: list[Any], dimensions: int | None = None) -> Any:
    """Equal vectors of images and of texts, in batches of unlike entries."""
    expected = load_encoder(trained).encode(pictures, TEXTS, dimensions=dimensions)
    model = st.SentenceTransformer(str(exported), device="cpu")
    np.testing.assert_allclose(model.encode(pictures), expected.images, atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS), expected.texts, atol=1e-5)
    np.testing.assert_allclose(
        model.similarity(model.encode(pictures), model.encode(TEXTS)).numpy(),
        expected.images @ expected.texts.T,
        atol=1e-5,
    )
    assert model.get_embedding_dimension() == expected.texts.shape[1]
    return model


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3"])
def test_whole_models(family: str, pictures: list[Any], tmp_path: Path) -> None:
    trained = made(tmp_path, family)
    exported = export_sentence_transformers(trained, tmp_path / "st", dtype="float32")
    model = check(trained, exported, pictures)
    encoder = load_encoder(trained)
    mixed = model.encode([TEXTS[0], pictures[0], {"image": pictures[1]}])
    expected = [encoder.encode(texts=TEXTS[:1])[0], *encoder.encode(pictures[:2])]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    asked = {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "What?"}]}
    whole = encoder.encode(rows=[{"image": pictures[0], "prompt": "What?"}])
    np.testing.assert_allclose(model.encode([[asked]]), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "dimensions"),
    [
        ("llava", {}, 24),
        ("idefics3", {"pooling": "mean"}, None),
        ("qwen2_5_vl", {"layer": 1}, None),
        ("llava", {"layer": 0.5, "pooling": "mean"}, 8),
        ("qwen2_5_vl", {"dim": 16}, None),
        ("llava", {"dim": 16, "dimensions": (8,)}, 8),
    ],
)
def test_what_stock_modules_do(
    family: str, options: dict[str, Any], dimensions: int | None, pictures: list[Any], tmp_path: Path
) -> None:
    trained = made(tmp_path, family, adapter=True, **options)
    exported = export_sentence_transformers(trained, tmp_path / "st", dimensions=dimensions, dtype="float32")
    check(trained, exported, pictures, dimensions)
    types = {each["type"] for each in json.loads((exported / "modules.json").read_text())}
    assert all(each.startswith("sentence_transformers.") for each in types)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_soft_prompts_are_tokens(family: str, pictures: list[Any], tmp_path: Path) -> None:
    trained = made(tmp_path, family, adapter=True, soft=True)
    exported = export_sentence_transformers(trained, tmp_path / "st", dtype="float32")
    check(trained, exported, pictures)
    in_words = Encoder(*load_model(tmp_path / "base"), load_encoder(trained).embedding).encode(pictures)
    assert abs(in_words - load_encoder(trained).encode(pictures)).max() > 1e-3


def test_heads_of_two_modalities_take_one_at_a_time(pictures: list[Any], tmp_path: Path) -> None:
    exported = export_sentence_transformers(made(tmp_path, "llava", dim=8), tmp_path / "st", dtype="float32")
    model = st.SentenceTransformer(str(exported), device="cpu")
    with pytest.raises(ValueError, match="Could not determine route"):
        model.encode([TEXTS[0], pictures[0]])
    assert len(list(exported.rglob("model.safetensors"))) == 3  # the model once, and two heads


def test_the_pixels_of_training(pictures: list[Any], tmp_path: Path) -> None:
    trained = made(tmp_path, "qwen2_5_vl")
    save_embedding(load_encoder(trained).embedding, trained, min_pixels=784, max_pixels=1568)
    check(trained, export_sentence_transformers(trained, tmp_path / "st", dtype="float32"), pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_prompt": None}, "the image side is of the projector's tokens"),
        ({"text_prompt": None, "text": "chosen"}, "the text side is of responses to prompts"),
        ({"pooling": "query"}, "pooled by a learned query"),
        ({"layer": 2}, "layer 2 is the last, without the norm"),
    ],
)
def test_what_stock_modules_cannot_do(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_sentence_transformers(made(tmp_path, "llava", **options), tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_sides_of_two_layers(tmp_path: Path) -> None:
    trained = made(tmp_path, "llava")
    sides = load_encoder(trained).embedding.features
    save_embedding(Embedding({**sides, "text": sides["text"]._replace(layer=1)}, {}), trained)
    with pytest.raises(ValueError, match="different layers or poolings"):
        export_sentence_transformers(trained, tmp_path / "st")


def test_a_head_of_one_side(tmp_path: Path) -> None:
    trained = made(tmp_path, "llava")
    sides = load_encoder(trained).embedding.features
    save_embedding(Embedding(sides, {"text": EmbeddingHead(64, 64)}), trained)
    with pytest.raises(ValueError, match="one side has a linear head and the other has none"):
        export_sentence_transformers(trained, tmp_path / "st")


def test_processors_that_cannot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PaliGemmaProcessor does not take the text side alone"):
        export_sentence_transformers(made(tmp_path, "paligemma"), tmp_path / "st")
    trained = made(tmp_path / "bare", "llava")
    (trained / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        export_sentence_transformers(trained, tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = made(tmp_path, "llava", adapter=True)
    for target in (trained, tmp_path / "base"):
        with pytest.raises(ValueError, match="is where the model itself lies"):
            export_sentence_transformers(trained, target, overwrite=True)
    exported = export_sentence_transformers(trained, tmp_path / "st")
    with pytest.raises(ValueError, match="has something in it"):
        export_sentence_transformers(trained, exported)
    with monkeypatch.context() as patch:  # before anything is read
        patch.setattr(sentence_transformers, "load_embedding", lambda _: pytest.fail("read first"))
        with pytest.raises(ValueError, match="has something in it"):
            export_sentence_transformers(trained, exported)
        (tmp_path / "file").write_text("a note")
        with pytest.raises(ValueError, match="is a file and is kept: name a folder"):
            export_sentence_transformers(trained, tmp_path / "file", overwrite=True)
    (exported / "note.txt").write_text("old")
    export_sentence_transformers(trained, exported, overwrite=True)
    assert not (exported / "note.txt").exists()
    with pytest.raises(ValueError, match="no embedding in"):  # it would ask twice
        load_encoder(exported)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(ValueError, match="holds something else than a model"):
        export_sentence_transformers(trained, tmp_path / "photos", overwrite=True)
    for wrong in (0, 65):
        with pytest.raises(ValueError, match="dimensions must be a whole number from 1 to 64"):
            export_sentence_transformers(trained, tmp_path / "other", dimensions=wrong)
