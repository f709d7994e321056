"""A chat model of transformers: batches answer as single asks do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mllm_align.data.mine.speaking import Ask
from mllm_align.data.mine.text_model import TextModel

TEMPLATE = (
    "<s>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXTS = ["user: What is a red cup on the table? assistant: It is small. system: Be brief, please."] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat model")
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


ASKS = [
    Ask("What?"),
    Ask("What is a red cup on the table, and what is it on a small table?"),
    Ask("Say it.", system="Be brief, please."),
    Ask("What is it?", start="It is "),
    Ask("Was ist süß?"),
]


def test_a_batch_answers_as_one_at_a_time_does(folder: Path) -> None:
    speaker = TextModel(folder, "cpu")
    alone = [speaker([ask], 12)[0] for ask in ASKS]
    assert speaker(ASKS, 12) == alone
    assert TextModel(folder, "cpu", batch_size=2)(ASKS, 12) == alone
    assert len(set(alone)) == len(alone)
    assert all(alone)
    assert speaker([], 12) == []


def greedy(speaker: TextModel, text: str, count: int) -> list[int]:
    ids = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(speaker.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_it_is_the_greedy_answer_up_to_an_end_token(folder: Path) -> None:
    speaker = TextModel(folder, "cpu")
    ids = greedy(speaker, "<s>user: What is it?\nassistant: It is ", 8)
    ask = Ask("What is it?", start="It is ")
    assert speaker([ask], 8) == [speaker.tokenizer.decode(ids, skip_special_tokens=True).rstrip()]
    speaker._ends = [ids[4]]
    cut = ids[: ids.index(ids[4]) + 1]
    assert speaker([ask], 8) == [speaker.tokenizer.decode(cut, skip_special_tokens=True).rstrip()]


def test_identity_tells_what_answers(folder: Path) -> None:
    assert TextModel(folder, "cpu").identity == f"{folder} in float32, greedy"
    assert TextModel(folder, "cpu", torch.bfloat16).identity == f"{folder} in bfloat16, greedy"


def test_pictures_and_models_that_do_not_chat_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text alone"):
        TextModel(folder, "cpu")([Ask("a", (Image.new("RGB", (2, 2)),))], 1)
    with pytest.raises(ValueError, match="no chat model"):
        TextModel(tmp_path / "nothing", "cpu")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no chat template"):
        TextModel(tmp_path / "bare", "cpu")
