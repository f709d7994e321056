"""Encoders: the model's own features, one at a time or together; what has no image side says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, BertConfig, BertModel

from mllm_align.data.errors import DataError
from mllm_align.data.mine.encoder import ImageEmbedder
from tiny import FAMILIES, save_tiny, tiny
from tiny_encoders import naive, save_encoder

LVLMS = FAMILIES


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_features_are_the_models_own(name: str, tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_encoder(name, tmp_path)
    expected = naive(name, folder, pictures).numpy()
    for batch_size in (1, 3, 8):
        embedder = ImageEmbedder(folder, batch_size=batch_size)
        found = embedder(pictures)
        assert found.dtype == np.float32
        assert found.shape == (len(pictures), embedder.dim)
        assert np.abs(found - expected).max() < 1e-5
        assert np.abs(embedder(pictures[::-1])[::-1] - expected).max() < 1e-5
    assert (expected @ expected.T)[~np.eye(len(pictures), dtype=bool)].max() < 0.999
    assert embedder([]).shape == (0, embedder.dim)


@pytest.mark.parametrize("family", LVLMS)
def test_an_lvlm_gives_the_mean_of_the_tokens_that_it_reads(
    family: str, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    model, processor = tiny(family)
    save_tiny(family, tmp_path)
    expected = []
    with torch.no_grad():
        for picture in pictures:
            inputs = processor.image_processor(images=[picture], return_tensors="pt")
            tokens = model.get_image_features(
                **{key: inputs[key] for key in inputs if key != "num_patches"}
            ).pooler_output
            tokens = tokens if isinstance(tokens, torch.Tensor) else torch.cat([t.flatten(0, -2) for t in tokens])
            expected.append(torch.nn.functional.normalize(tokens.flatten(0, -2).double().mean(0), dim=0).numpy())
    embedder = ImageEmbedder(tmp_path, batch_size=3)
    assert np.abs(embedder(pictures) - np.stack(expected)).max() < 1e-5


def test_poolings_of_the_last_layer(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_encoder("dinov2", tmp_path)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        tokens = model(**processor(pictures, return_tensors="pt")).last_hidden_state.double()
    for pooling, expected in (("cls", tokens[:, 0]), ("mean", tokens.mean(1))):
        found = torch.from_numpy(ImageEmbedder(folder, pooling=pooling)(pictures)).double()
        assert (found - expected / expected.norm(dim=1, keepdim=True)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="auto, cls, mean"):
        ImageEmbedder(folder, pooling="max")
    with pytest.raises(ValueError, match="batch_size"):
        ImageEmbedder(folder, batch_size=0)


def test_the_identity_is_of_what_decides_the_vectors_not_of_the_place(tmp_path: Path) -> None:
    folder = save_encoder("clip", tmp_path / "here" / "clip")
    identity = ImageEmbedder(folder).identity
    copied = tmp_path / "there" / "clip"
    shutil.copytree(folder, copied)
    assert ImageEmbedder(copied, batch_size=3).identity == identity
    assert str(tmp_path) not in identity
    others = [ImageEmbedder(folder, pooling="mean"), ImageEmbedder(folder, dtype="bfloat16")]
    others.append(ImageEmbedder(save_encoder("clip", tmp_path / "other" / "clip", seed=1)))
    processor = AutoImageProcessor.from_pretrained(copied)
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(copied)
    others.append(ImageEmbedder(copied))
    assert len({identity, *(other.identity for other in others)}) == 5


def test_half_precision_is_near_and_of_length_1(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_encoder("clip", tmp_path)
    whole, half = ImageEmbedder(folder)(pictures), ImageEmbedder(folder, dtype="bfloat16")(pictures)
    assert np.abs(np.linalg.norm(half, axis=1) - 1).max() < 1e-6
    assert (whole * half).sum(1).min() > 0.99


def test_what_has_no_image_side_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a model's folder nor"):
        ImageEmbedder(tmp_path / "nowhere")
    BertModel(BertConfig(hidden_size=32, intermediate_size=32, num_attention_heads=2, vocab_size=64)).save_pretrained(
        tmp_path / "text"
    )
    with pytest.raises(DataError, match="no image processor, so no image side"):
        ImageEmbedder(tmp_path / "text")
    AutoImageProcessor.from_pretrained(save_encoder("clip", tmp_path / "clip")).save_pretrained(tmp_path / "text")
    with pytest.raises(DataError, match="BertModel, which has no image side"):
        ImageEmbedder(tmp_path / "text")


def test_weights_that_the_checkpoint_lacks_are_not_made_up(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_encoder("vit", tmp_path)
    with pytest.raises(DataError, match=r"lacks weights of the image side, such as pooler.*'cls'"):
        ImageEmbedder(folder)
    found = ImageEmbedder(folder, pooling="cls")(pictures)
    assert np.abs(found - naive("vit", folder, pictures).numpy()).max() < 1e-5


def test_what_is_not_finite_is_nan(tmp_path: Path, pictures: list[Image.Image]) -> None:
    model, processor = tiny("llava")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias.fill_(float("inf"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert np.isnan(ImageEmbedder(tmp_path)(pictures)).all()
