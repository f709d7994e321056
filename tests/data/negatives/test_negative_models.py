"""Edits by a masked language model and a chat model: what is asked, and which answers pass."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mllm_align.cli import main
from mllm_align.data.negatives.masked import MaskedModel, fits
from mllm_align.data.negatives.sentence import Sentence
from mllm_align.data.negatives.spoken import is_edit, is_paraphrase, spoken_edits, spoken_paraphrases
from speakers import Scripted

WORDS = [
    "a",
    "red",
    "blue",
    "small",
    "little",
    "large",
    "cup",
    "plate",
    "cups",
    "dog",
    "puppy",
    "on",
    "the",
    "left",
    "of",
    "right",
    "table",
    "is",
    "##s",
    "two",
    "three",
    ".",
    "bike",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT whose pieces are a few words."""
    path = tmp_path_factory.mktemp("masked model")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,
    )
    BertForMaskedLM(config).save_pretrained(path)
    return path


TEXTS = ["a red cup on the table .", "two cups left of a small dog", "it", "a red cup " * 10]


def rngs(seed: int) -> list[Random]:
    return [Random(seed + number) for number in range(len(TEXTS))]


def test_a_masked_model_puts_in_the_best_word_that_fits(folder: Path) -> None:
    model = MaskedModel(folder, "cpu", top_k=30)
    found = model.edits(TEXTS, rngs(0), 3)
    assert 0 < len(found[0]) <= 3
    assert 0 < len(found[1]) <= 3
    assert not found[2]
    for text, edits in zip(TEXTS, found, strict=True):
        words = text.split()
        for edit in edits:
            assert edit.kind == "masked"
            changed = [n for n, (a, b) in enumerate(zip(words, edit.text.split(), strict=True)) if a != b]
            place = next(n for n in changed if words[n] not in ("a", "an"))
            assert edit.text.split()[place] == naive(model, text, place)
    assert found == model.edits(TEXTS, rngs(0), 3)
    assert found == MaskedModel(folder, "cpu", top_k=30, batch_size=1).edits(TEXTS, rngs(0), 3)
    assert any(found != model.edits(TEXTS, rngs(seed), 3) for seed in (10, 20, 30))


@torch.no_grad()
def naive(model: MaskedModel, text: str, place: int) -> str:
    """The likeliest word of the vocabulary that fits, one text at a time."""
    words = text.split()
    hidden = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
    inputs: Any = model.tokenizer(hidden, return_tensors="pt", truncation=True, max_length=22)
    where = int((inputs["input_ids"][0] == 4).nonzero()[0])
    logits = model.model(**inputs).logits[0, where]
    sentence = Sentence(text)
    order = [([*SPECIAL, *WORDS])[each] for each in logits.argsort(descending=True).tolist()]
    return next(word for word in order if word[0] not in "[#" and fits(sentence, place, word))


@pytest.mark.parametrize(
    ("text", "place", "fill", "expected"),
    [
        ("a red cup", 1, "blue", True),
        ("a red cup", 1, "Red", False),
        ("a red cup", 1, "maroon", False),  # a red, too
        ("a red cup", 1, "large", False),  # another kind
        ("a red cup", 2, "plate", True),
        ("a red cup", 2, "plates", False),
        ("a red cup", 2, "mug", False),  # a cup, too
        ("two dogs", 1, "puppies", False),
        ("two dogs", 1, "dog", False),
        ("two dogs", 1, "cats", True),
        ("two dogs", 0, "three", True),
        ("two dogs", 0, "one", False),  # of dogs
        ("a dog barking", 2, "sleeps", False),
        ("a dog barking", 2, "digging", True),
        ("a small cup", 1, "little", False),
        ("a small cup", 1, "large", True),
        ("left of it", 0, "right", True),
        ("left of it", 0, "red", False),
        ("a dog", 1, "the", False),
        ("a dog", 1, "##s", False),
    ],
)
def test_which_words_fit(text: str, place: int, fill: str, expected: bool) -> None:
    assert fits(Sentence(text), place, fill) is expected


def test_what_is_no_masked_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="there is no masked language model"):
        MaskedModel(tmp_path / "nothing")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.mask_token = None
    other = tmp_path / "other"
    tokenizer.save_pretrained(other)
    BertForMaskedLM.from_pretrained(folder).save_pretrained(other)
    with pytest.raises(ValueError, match="has no mask token"):
        MaskedModel(other)


@pytest.mark.parametrize(
    ("other", "edit", "paraphrase"),
    [
        ("A blue cup on a table", True, False),
        ("A red cup under a table", True, False),
        ("A red mug on a table", False, True),  # one meaning
        ("A red cup on a table.", False, False),  # the same
        ("A red cup", False, False),  # less is said
        ("No red cup on a table", False, False),
        ("Two red cups on a table", True, False),
        ("There is a red cup on a table", False, True),
        ("A man in a green hat eats a pizza at a stand by the sea", False, False),
    ],
)
def test_which_replies_pass(other: str, edit: bool, paraphrase: bool) -> None:
    text = "A red cup on a table"
    assert is_edit(text, other) is edit
    assert is_paraphrase(text, other) is paraphrase


def test_a_chat_model_is_asked_once_a_text_and_its_lines_are_read() -> None:
    reply = '1. "A blue cup"\n- a red cup\n\n2) A red plate\nText: A green cup\nA white cup'
    speaker = Scripted(lambda ask: reply)
    found = spoken_edits(["a red cup", "nothing"], speaker, 3)
    assert [each.text for each in found[0]] == ["A blue cup", "A red plate", "A green cup"]
    assert len(speaker.asked) == 2
    assert "Text: a red cup" in speaker.asked[0].prompt
    assert "Write 3 other" in speaker.asked[0].prompt
    same = spoken_paraphrases(["a red cup"], Scripted(lambda ask: "a red mug\nthere is a blue cup"), 2)
    assert same == [["a red mug"]]


def test_the_command_with_a_masked_model_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "1", "image": "1.png", "prompt": "What?", "chosen": TEXTS[0]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    command = ["data", "negatives", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*command, "--kinds", "--mlm", str(folder), "--top-k", "30", "--device", "cpu"]) == 0
    assert "masked: " in capsys.readouterr().out
    made = json.loads((tmp_path / "out.jsonl").read_text())
    assert set(made["negatives_by"][0]) == {"masked"}
    assert all(text != TEXTS[0] for text in made["objects"][0]["negatives"])
