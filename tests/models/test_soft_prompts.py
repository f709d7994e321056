"""Soft prompts: the same as the words at first, trained beside LoRA, kept with the adapter, read and never said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import normalizers
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mllm_align.contract import Feature, Needs
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of, unwrap
from mllm_align.models import (
    ModelArguments,
    SoftPrompts,
    add_soft_prompts,
    attach_lora,
    load_adapter,
    load_arms,
    load_model,
    load_processor,
    merge_and_export,
    save_base_identity,
    soft_prompts_of,
)
from mllm_align.models.fingerprint import base_fingerprint
from mllm_align.models.identity import base_probe
from mllm_align.models.soft_prompts import FILE_NAME
from mllm_align.signals import EngineOptions, NamedAdapter, measure
from runs import picture
from tiny import save_tiny, tiny

PROMPTS = ("Summarize the image above in one word:", "Summarize the sentence above in one word:")
IMAGE = Feature("image", "embedding", "image", pooling="last", prompt=PROMPTS[0])
TEXT = Feature("text", "embedding", "caption", pooling="last", prompt=PROMPTS[1])
ROWS = [
    {"image": picture(1), "caption": "The red circle is left of it."},
    {"image": picture(2), "caption": "two stars"},
]
# Most have rows to spare, Idefics3 has too few; Gemma's scale their embeddings, which are their heads.
FAMILIES = ("llava", "qwen2_5_vl", "internvl", "idefics3", "paligemma", "gemma3")
IDS = torch.arange(40, 60)[None]


def soft_of(holder: Any) -> SoftPrompts:
    found = soft_prompts_of(holder)
    assert found is not None
    return found


def embedded(model: Any, processor: Any, replace: dict[str, str]) -> dict[str, torch.Tensor]:
    """The states behind both prompts, by the collator and the engine."""
    family = family_of(model)
    needs = Needs(features=(IMAGE, TEXT))
    collator = AlignCollator(processor, lambda source: needs, family.image_keys, family.token_keys, replace=replace)
    with torch.no_grad():
        found, _ = measure(model, collator(ROWS)["batch"], features=needs.features, options=EngineOptions())
    return {name: ragged.values for name, ragged in found.features.items()}


def learned(model: Any, seed: int = 0) -> torch.Tensor:
    """Other vectors and LoRA weights than those at first, as training would leave them; the vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise if "lora_" in name else parameter.std() * noise)
                vectors = parameter.detach() if "trainable_tokens" in name else vectors
    assert vectors is not None
    return vectors


def trained_on(base: Path, folder: Path, **arguments: Any) -> tuple[Any, Any, torch.Tensor]:
    """An adapter with soft prompts in a folder, as a run leaves it: model, processor, vectors."""
    model, processor = load_model(base, use_peft=True, soft_prompts=list(PROMPTS), **arguments)
    vectors = learned(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    soft_of(model).save(folder)
    save_base_identity(base_probe(model), str(base), folder)
    return model, processor, vectors


@pytest.mark.parametrize("family", FAMILIES)
def test_at_first_they_are_read_as_the_words(family: str) -> None:
    """Bit for bit, with an adapter on top, and nothing else of the model is changed."""
    model, processor = tiny(family)
    size, rows = len(processor.tokenizer), len(model.get_input_embeddings().weight)
    words = embedded(model, processor, {})
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    soft = add_soft_prompts(model, processor, PROMPTS)
    assert soft.first_id == size
    assert len(processor.tokenizer) == size + len(soft.ids)
    assert len(unwrap(model).get_input_embeddings().weight) == soft.embedding_rows
    assert (soft.embedding_rows > rows) == (family == "idefics3")
    model = attach_lora(model, ModelArguments())
    found = embedded(model, processor, soft.replace)
    assert all(torch.equal(found[name], words[name]) for name in ("image", "text"))
    with torch.no_grad():
        after = model(input_ids=IDS).logits
    assert torch.equal(after[..., :size], before[..., :size])
    assert after[..., size : soft.silent_until].max() == torch.finfo(torch.float32).min
    assert soft.silent_until == (soft.embedding_rows if family == "idefics3" else size + len(soft.ids))
    one, other = soft.prompts
    assert [len(each.tokens) for each in soft.prompts] == [len(each.begins_as) for each in soft.prompts]
    assert processor.tokenizer.decode(list(other.begins_as)) == other.prompt == PROMPTS[1]
    assert not set(one.tokens) & set(other.tokens)


@pytest.mark.parametrize("family", ["idefics3", "gemma3"])
def test_they_and_lora_train_and_the_rest_does_not(family: str, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base")
    model, _ = load_model(base, use_peft=True, soft_prompts=list(PROMPTS))
    soft = soft_of(model)
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens = [p for name, p in trains.items() if "lora_" not in name]
    assert [tuple(p.shape) for p in tokens] == [(len(soft.ids), 64)]
    alone, _ = load_model(base, use_peft=True, soft_prompts=[PROMPTS[0]], lora_scope=[])
    assert [p.shape[0] for p in alone.parameters() if p.requires_grad] == [len(soft.prompts[0].tokens)]


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3"])
def test_with_the_adapter_off_it_is_the_base(family: str, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base")
    stock, processor = load_model(base)
    words, size = embedded(stock, processor, {}), len(processor.tokenizer)
    with torch.no_grad():
        logits = stock(input_ids=IDS).logits
    model, processor = load_model(base, use_peft=True, soft_prompts=list(PROMPTS))
    soft = soft_of(processor)
    learned(model)
    with torch.no_grad():
        # Weights drawn at random also say what no word has, as no trained model does.
        said = stock.generate(input_ids=IDS, max_new_tokens=8, suppress_tokens=list(range(size, soft.silent_until)))
    assert not torch.equal(embedded(model, processor, soft.replace)["text"], words["text"])
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits[..., :size], logits[..., :size])
        assert torch.equal(model.generate(input_ids=IDS, max_new_tokens=8), said)
        for replace in ({}, soft.replace):
            found = embedded(model, processor, replace)
            assert all(torch.equal(found[name], words[name]) for name in words)
    assert base_probe(model) == base_probe(stock)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3", "paligemma"])
def test_a_saved_adapter_comes_back(family: str, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base")
    model, processor, vectors = trained_on(base, tmp_path / "run")
    soft = soft_of(model)
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert [tuple(value.shape) for name, value in saved.items() if "lora_" not in name] == [tuple(vectors.shape)]
    ids = torch.cat([IDS, torch.tensor([soft.ids])], 1)
    expected = embedded(model, processor, soft.replace)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    loaded, other = load_model(base, tmp_path / "run")
    assert soft_prompts_of(other) == soft_prompts_of(loaded) == soft
    found = embedded(loaded, other, soft.replace)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, logits)


def test_with_peft_alone(tmp_path: Path) -> None:
    """As the module's docstring says."""
    base = save_tiny("idefics3", tmp_path / "base")
    model, _, _ = trained_on(base, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / FILE_NAME).read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    stock = AutoModelForImageTextToText.from_pretrained(base)
    stock.resize_token_embeddings(max(facts["embedding_rows"], stock.get_input_embeddings().num_embeddings))
    bare = PeftModel.from_pretrained(stock, str(tmp_path / "run")).eval()
    ids = tokenizer("What? " + "".join(facts["prompts"][0]["tokens"]) + " a", return_tensors="pt")["input_ids"]
    assert set(soft_of(model).prompts[0].tokens) <= set(tokenizer.convert_ids_to_tokens(ids[0]))
    with torch.no_grad():
        one, other = (each(input_ids=ids, output_hidden_states=True).hidden_states[-1] for each in (bare, model))
    assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3"])
def test_merged_they_are_tokens_of_the_model(family: str, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base")
    model, processor, vectors = trained_on(base, tmp_path / "run")
    soft = soft_of(model)
    expected = embedded(model, processor, soft.replace)
    whole = merge_and_export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    stock = AutoModelForImageTextToText.from_pretrained(whole).eval()
    assert torch.equal(stock.get_input_embeddings().weight[list(soft.ids)], vectors)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert (
        tuple(tokenizer(soft.replace[PROMPTS[1]], add_special_tokens=False)["input_ids"])
        == soft.ids[len(soft.prompts[0].tokens) :]
    )
    loaded, other = load_model(whole)
    for each, reader in ((stock, processor), (loaded, other)):
        found = embedded(each, reader, soft.replace)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert soft_prompts_of(other) == soft.merged() != soft
    alone = merge_and_export(tmp_path / "run", tmp_path / "alone", merge=False)
    found = embedded(*load_model(base, alone), soft.replace)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_merged_they_train_further(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    _, _, vectors = trained_on(base, tmp_path / "run")
    whole = merge_and_export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    model, processor, others = trained_on(whole, tmp_path / "second")
    assert not torch.equal(others, vectors)
    soft = soft_of(processor)
    loaded, again = load_model(whole, tmp_path / "second")
    one, other = embedded(model, processor, soft.replace), embedded(loaded, again, soft.replace)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with loaded.disable_adapter(), torch.no_grad():
        assert torch.equal(loaded.get_input_embeddings().original_module.weight[list(soft.ids)], vectors)
    with pytest.raises(ValueError, match="has soft prompts already, for 'Summarize the image"):
        load_model(whole, soft_prompts=["Something else:"])


@pytest.mark.parametrize("family", ["gemma3", "idefics3", "paligemma2"])
def test_they_are_never_said(family: str, tmp_path: Path) -> None:
    """Not even where a vector, which is a row of the head as well, points to where the model's states do."""
    base = save_tiny(family, tmp_path / "base")
    model, processor = load_model(base, use_peft=True, soft_prompts=list(PROMPTS))
    soft = soft_of(model)
    with torch.no_grad():
        state = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1][0, -1]
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name:
                parameter.copy_(100 * state.expand_as(parameter))
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    soft.save(tmp_path / "run")
    whole = merge_and_export(tmp_path / "run", tmp_path / "merged", dtype="float32")
    stock = AutoModelForImageTextToText.from_pretrained(whole).eval()
    if family != "idefics3":  # its head is another matrix
        with torch.no_grad():
            assert int(stock(input_ids=IDS).logits[0, -1].argmax()) in soft.ids
    own, ours = load_model(base)[0], load_model(whole)[0]
    silent = list(range(soft.first_id, soft.silent_until))
    greedy = {"input_ids": IDS, "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        said = own.generate(**greedy, suppress_tokens=silent)
        assert all(torch.equal(each.generate(**greedy), said) for each in (model, stock, ours))
        logits = own(input_ids=IDS).logits[..., : soft.first_id]
        logps = [each(input_ids=IDS).logits.log_softmax(-1)[..., : soft.first_id] for each in (model, ours)]
    if family == "idefics3":  # the others have further rows without a word
        logps.append(logits.log_softmax(-1))
    if family != "paligemma2":  # it caps its logits, which leaves to a token at its lowest a little
        for other in logps[1:]:
            torch.testing.assert_close(other, logps[0], rtol=0, atol=1e-6)


def test_4_bit_bases(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_tiny("idefics3", tmp_path / "base")
    stock, processor = load_model(base, load_in_4bit=True)
    words = embedded(stock, processor, {})
    model, processor, _ = trained_on(base, tmp_path / "run", load_in_4bit=True)
    soft = soft_of(model)
    expected = embedded(model, processor, soft.replace)
    with model.disable_adapter():
        found = embedded(model, processor, soft.replace)
    assert all(torch.equal(found[name], words[name]) for name in words)
    loaded, processor = load_model(base, tmp_path / "run", load_in_4bit=True)
    found = embedded(loaded, processor, soft.replace)
    assert all(torch.equal(found[name], expected[name]) for name in words)


def test_a_tokenizer_that_puts_a_space_behind_special_tokens() -> None:
    """LLaVA-1.5's does, and its chat template has one there already."""
    model, processor = tiny("llava")
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[list-item]
    processor.tokenizer.backend_tokenizer.normalizer = spaces
    words = embedded(model, processor, {})["image"]
    soft = add_soft_prompts(model, processor, PROMPTS[:1])
    assert soft.strips_space
    assert torch.equal(embedded(model, processor, soft.replace)["image"], words)


def test_the_fingerprint_of_the_base_is_that_below_the_adapter() -> None:
    model, processor = tiny("llava")
    add_soft_prompts(model, processor, PROMPTS)
    before = base_fingerprint(model, "no").facts
    adapted = attach_lora(model, ModelArguments())
    assert base_fingerprint(adapted, "no").facts == before


def test_beside_another_adapter(tmp_path: Path) -> None:
    """One load of the base serves an adapter with soft prompts and one without."""
    base = save_tiny("gemma3", tmp_path / "base")
    model, processor, _ = trained_on(base, tmp_path / "soft")
    soft = soft_of(model)
    plain, _ = load_model(base, use_peft=True)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
        expected = {"soft": model(input_ids=IDS).logits, "plain": plain(input_ids=IDS).logits}
    plain.save_pretrained(tmp_path / "plain")
    save_base_identity(base_probe(plain), str(base), tmp_path / "plain")
    for order in (("soft", "plain"), ("plain", "soft")):
        both, reader, _ = load_arms(ModelArguments(str(base)), {name: str(tmp_path / name) for name in order})
        for name in order:
            with NamedAdapter(name).on(both), torch.no_grad():
                found = both(input_ids=IDS).logits
                assert torch.equal(found[..., : soft.first_id], expected[name][..., : soft.first_id]), (order, name)
        with NamedAdapter("soft").on(both):
            one, other = embedded(both, reader, soft.replace), embedded(model, processor, soft.replace)
            assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(ValueError, match=r"plain' has no soft prompts, and PEFT loads none such.*load it first"):
        load_adapter(load_model(base, tmp_path / "soft")[0], tmp_path / "plain", name="plain")


def test_what_is_refused(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    for prompts, message in (
        ([], "a list of prompts in words"),
        ("Say:", "a list of prompts in words"),
        (["Say:", " "], "soft prompt 1 is ' ': write the prompt"),
        (["Say:", 3], "soft prompt 1 is 3: write the prompt"),
        (["Say:", "Say:"], "is there twice"),
    ):
        with pytest.raises(ValueError, match=message):
            add_soft_prompts(model, processor, prompts)
    with pytest.raises(ValueError, match="is there twice"):
        ModelArguments(soft_prompts=["Say:", "Say:"])
    with pytest.raises(ValueError, match="holds the image token"):
        add_soft_prompts(model, processor, ["<image>\nSay:"])
    adapted = attach_lora(tiny("llava")[0], ModelArguments())
    with pytest.raises(ValueError, match="before the model gets any"):
        add_soft_prompts(adapted, processor, PROMPTS)
    soft = add_soft_prompts(model, processor, PROMPTS)
    assert add_soft_prompts(model, processor, PROMPTS[::-1]) == soft
    with pytest.raises(ValueError, match="has soft prompts already"):
        add_soft_prompts(model, processor, PROMPTS[:1])
    del processor.soft_prompts
    with pytest.raises(ValueError, match=r"no soft_prompts\.json that says what it is"):
        add_soft_prompts(tiny("llava")[0], processor, PROMPTS)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    trained_on(base, tmp_path / "run")
    with pytest.raises(ValueError, match="trained with soft prompts, for 'Summarize the image"):
        load_adapter(load_model(base)[0], tmp_path / "run")
    with pytest.raises(ValueError, match="leave soft_prompts out"):
        load_model(base, tmp_path / "run", soft_prompts=list(PROMPTS))
    other = load_processor(str(base))
    other.tokenizer.add_tokens(["<|mine|>"])
    other.save_pretrained(base)
    with pytest.raises(ValueError, match=r"gives token '<\|soft:0:0\|>' the id 393"):
        load_model(base, tmp_path / "run")
