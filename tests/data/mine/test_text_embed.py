from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mllm_align.data.mine.text_embed import TextEmbedder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "red", "blue", "dog", "cat", "and", "big"]
TEXTS = ["a red dog", "the blue cat and a big red dog", "dog", ""]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.5, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_of_the_hidden_states_of_a_text_alone(encoder: Path) -> None:
    embedder = TextEmbedder(encoder, device="cpu", batch_size=2)
    found = embedder(TEXTS[:3])
    model = BertModel.from_pretrained(encoder).eval()
    for vector, text in zip(found, TEXTS[:3], strict=True):
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-5)


def test_similarities_are_cosines(encoder: Path) -> None:
    embedder = TextEmbedder(encoder, device="cpu")
    same, other = embedder.similarities(["a red dog", "a red dog"], ["a red dog", "the blue cat"])
    assert same == pytest.approx(1, abs=1e-5)
    assert -1 <= other < 1
    assert embedder.similarities([], []) == []


def test_long_and_empty_texts_are_no_error(encoder: Path) -> None:
    embedder = TextEmbedder(encoder, device="cpu")
    assert embedder.max_tokens == 16
    assert torch.isfinite(embedder(["", "dog " * 100])).all()
    assert str(encoder) in embedder.identity


def test_a_missing_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no text encoder") as caught:
        TextEmbedder(tmp_path / "none")
    assert "\n" not in str(caught.value)
