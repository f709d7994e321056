"""A Q-Former that begins as BERT makes of words what BERT makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from mllm_align.trainers.x_former import masks
from mllm_align.trainers.x_former.bert import start_from_bert
from mllm_align.trainers.x_former.words import Words
from mllm_align.vision.mixers.q_former import QFormer

VOCABULARY = 30


@pytest.fixture
def bert(tmp_path: Path) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "bert")
    return model


@torch.no_grad()
def test_states_and_logits_are_those_of_bert(bert: BertForMaskedLM, tmp_path: Path) -> None:
    q_former, words = QFormer(5, 4, 16, 3, 2), Words(VOCABULARY, 16, 3, max_length=8)
    start_from_bert(q_former, words, str(tmp_path / "bert"))
    tokens = torch.randint(VOCABULARY, (2, 6))
    tokens[:, 0] = 7
    present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    theirs = bert(input_ids=tokens, attention_mask=present.long(), output_hidden_states=True)
    visible = masks.unimodal(4, present)
    _, states = q_former(torch.randn(2, 3, 5), words.embed(tokens, 7), visible, words.feedforwards)
    torch.testing.assert_close(states[present], theirs.hidden_states[-1][present], rtol=1e-4, atol=1e-5)
    logits = words.next_logits(states)[..., :VOCABULARY]
    torch.testing.assert_close(logits[present], theirs.logits[present], rtol=1e-4, atol=1e-4)
    for layer, fed in zip(q_former.layers, words.feedforwards, strict=True):
        torch.testing.assert_close(layer.feedforward.state_dict(), fed.state_dict())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("depth", "vocabulary", "length", "said"),
    [(2, VOCABULARY, 8, "depth of 3"), (3, 31, 8, "vocabulary of 30"), (3, VOCABULARY, 11, "12 positions")],
)
def test_another_size_is_refused(
    bert: BertForMaskedLM, tmp_path: Path, depth: int, vocabulary: int, length: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        start_from_bert(QFormer(5, 4, 16, depth, 2), Words(vocabulary, 16, depth, length), str(tmp_path / "bert"))


def test_what_is_no_bert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no BERT could be loaded"):
        start_from_bert(QFormer(5, 4, 16, 3, 2), Words(VOCABULARY, 16, 3, 8), str(tmp_path))
