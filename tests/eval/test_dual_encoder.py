"""Dual encoders: tiny CLIP and SigLIP models of real configs, against one image and one text at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from eval_items import item
from mllm_align.cli import main
from mllm_align_eval.benchmarks.captions import caption_item
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.retrieval import FLICKR30K
from mllm_align_eval.dual_encoder import DualEncoder
from mllm_align_eval.items import Picture
from mllm_align_eval.matrices import read_matrix
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import similarity_rows
from tiny_parts import CLIP, SIGLIP

LENGTH = 12
WORDS = ["<pad>", "<unk>", "</s>", "a", "red", "green", "blue", "yellow", "disc", "on", "the", "wall", "photo", "of"]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAPTIONS = ("a red disc", "a green disc on the wall", "a blue disc", "a photo of a yellow disc on the wall")


def tokenizer(**settings):
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **settings
    )


def clip():
    config = CLIPConfig(text_config=TEXT, vision_config=dict(CLIP), projection_dim=24)
    image = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return CLIPModel(config), CLIPProcessor(image, tokenizer(model_max_length=LENGTH))


def siglip():
    config = SiglipConfig(text_config=TEXT | {"projection_size": SIGLIP["hidden_size"]}, vision_config=dict(SIGLIP))
    image = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    return SiglipModel(config), SiglipProcessor(image, tokenizer(model_input_names=["input_ids"]))


@pytest.fixture(scope="module", params=[clip, siglip], ids=["clip", "siglip"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    model, processor = request.param()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    path = tmp_path_factory.mktemp(request.param.__name__)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return DualEncoder(folder, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def naive(folder, pictures):
    """(images, texts) cosines by the model's own forward pass, one image and one text at a time."""
    kind = CLIPModel if json.loads((folder / "config.json").read_text())["model_type"] == "clip" else SiglipModel
    processor = (CLIPProcessor if kind is CLIPModel else SiglipProcessor).from_pretrained(folder)
    model = kind.from_pretrained(folder).eval()
    found = np.zeros((len(pictures), len(CAPTIONS)))
    for row, image in enumerate(pictures):
        for column, text in enumerate(CAPTIONS):
            inputs = processor(images=image, text=[text], padding="max_length", max_length=LENGTH, return_tensors="pt")
            with torch.no_grad():
                output = model(**inputs)
            found[row, column] = torch.cosine_similarity(output.image_embeds, output.text_embeds).item()
    return found


def test_similarities_are_those_of_the_model_itself(encoder, naive, pictures):
    found = encoder.similarities(pictures, CAPTIONS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive, atol=2e-6)
    assert naive.std(axis=0).min() > 1e-3
    assert naive.std(axis=1).min() > 1e-3
    assert encoder.images(pictures).shape[0] == 4
    np.testing.assert_allclose(np.linalg.norm(encoder.texts(CAPTIONS), axis=1), 1, atol=1e-6)


def test_batches_do_not_matter(folder, naive, pictures):
    one = DualEncoder(folder, device="cpu", batch_size=1)
    np.testing.assert_allclose(one.similarities(pictures, CAPTIONS), naive, atol=2e-6)
    assert one.texts([]).shape[0] == 0
    long = one.texts(["disc " * 50])
    assert np.isfinite(long).all()


def test_scores_of_captions(encoder, naive, pictures):
    loads = []

    def load(index):
        loads.append(index)
        return pictures[index]

    shown = [Picture(f"{index}.png", lambda index=index: load(index)) for index in range(4)]
    rows = [(0, (0, 1)), (0, (2, 3, 1)), (3, (3, 0)), (2, (1, 1))]
    items = [
        caption_item(f"x/{n}", "s", "k", f"{image}", shown[image], [CAPTIONS[c] for c in columns], 0)
        for n, (image, columns) in enumerate(rows)
    ]
    found = similarity_rows(encoder, items)
    for entry, (image, columns) in zip(items, rows, strict=True):
        np.testing.assert_allclose(found[entry.id], naive[image, list(columns)], atol=2e-6)
    assert sorted(loads) == [0, 2, 3]
    # Another part of the same file is another image.
    crops = [caption_item(f"y/{n}", "s", "k", "0", shown[n], CAPTIONS[:2], 0, truth={"crop": [n]}) for n in (0, 1)]
    crops = [type(one)(**{**vars(one), "pictures": (one.pictures[0]._replace(name="same"),)}) for one in crops]
    found = similarity_rows(encoder, crops)
    np.testing.assert_allclose([found["y/0"], found["y/1"]], naive[:2, :2], atol=2e-6)


def test_retrieval(encoder, naive, pictures, tmp_path):
    for index, image in enumerate(pictures):
        image.save(tmp_path / f"{index}.png")
    rows = [{"image": f"{index}.png", "caption": [CAPTIONS[index]]} for index in range(4)]
    (tmp_path / "flickr30k_test.json").write_text(json.dumps(rows))
    items = FLICKR30K.read(tmp_path, PictureFolder(tmp_path, "nowhere"))
    found = similarity_rows(encoder, items)
    np.testing.assert_allclose([np.asarray(found[f"flickr30k/image/{n}"]) for n in range(4)], naive, atol=2e-6)
    np.testing.assert_allclose([np.asarray(found[f"flickr30k/text/{n}"]) for n in range(4)], naive.T, atol=2e-6)
    np.save(tmp_path / "sims.npy", encoder.similarities([i.pictures[0] for i in items[:4]], CAPTIONS))
    for parser in ("strict", "official"):
        here, file = (
            measures_of(FLICKR30K, items, g, parser) for g in (found, read_matrix(tmp_path / "sims.npy", items))
        )
        assert {k: m.metric.value() for k, m in here.items()} == {k: m.metric.value() for k, m in file.items()}
        first = float(np.mean(naive.argmax(axis=1) == np.arange(4)))
        assert here["flickr30k/image_to_text/r1"].metric.value() == first
    with pytest.raises(ValueError, match="the queries of all images and all texts"):
        similarity_rows(encoder, [items[0], items[-1]])


def test_what_cannot_be_encoded(encoder, tmp_path):
    with pytest.raises(ValueError, match="'q' is no question that a dual encoder can answer"):
        similarity_rows(encoder, [item("q")])
    with pytest.raises(ValueError, match="cannot load"):
        DualEncoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        DualEncoder(tmp_path, batch_size=0)


def test_score_command(folder, naive, pictures, tmp_path, capsys):
    (tmp_path / "flickr30k").mkdir()
    rows = [{"image": f"{n}.png", "caption": [text]} for n, text in enumerate(CAPTIONS)]
    (tmp_path / "flickr30k" / "flickr30k_test.json").write_text(json.dumps(rows))
    for n, image in enumerate(pictures):
        image.save(tmp_path / f"{n}.png")
    command = ["eval", "score", "flickr30k", "--data", str(tmp_path), "--dual-encoder", str(folder)]
    assert main([*command, "--images", str(tmp_path), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["flickr30k/image_to_text/r1"]["value"] == (naive.argmax(axis=1) == range(4)).mean()
    assert scores["flickr30k/text_to_image/r1"]["value"] == (naive.argmax(axis=0) == range(4)).mean()
    assert main(command) == 2
    assert "--images is missing: flickr30k needs its pictures" in capsys.readouterr().err
    assert main([*command, "--images", str(tmp_path), "--format", "lmms-eval"]) == 2
    assert "leave it out beside --dual-encoder" in capsys.readouterr().err


def test_questions_that_want_a_text_are_refused_before_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "pope").mkdir()
    row = {"question_id": 1, "image": "0.png", "text": "Is there a disc?", "label": "yes"}
    (tmp_path / "pope" / "coco_pope_random.json").write_text(json.dumps(row))
    assert main(["eval", "score", "pope", "--data", str(tmp_path), "--dual-encoder", "nowhere"]) == 2
    assert "is no question that a dual encoder can answer" in capsys.readouterr().err
