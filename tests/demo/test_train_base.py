"""The base model: its training learns, its script ends in a folder that loads, and the shipped one is as described."""

import re
from random import Random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm_align.data.world import SMALL, questions, render, scenes
from mllm_align.demo import base_path
from mllm_align.demo.base_model import build_model, build_processor, vocabulary
from mllm_align.demo.base_scores import answers, score_base
from mllm_align.demo.stage_language import Packer, hidden_states, train_language
from mllm_align.demo.stage_vision import dense_scene, pixel_values, train_vision
from mllm_align.demo.train_base import LANGUAGE_STEPS, VISION_STEPS, train_base


@pytest.fixture(scope="module")
def processor():
    return build_processor(SMALL)


@pytest.fixture(scope="module")
def base():
    return AutoModelForImageTextToText.from_pretrained(base_path(), dtype=torch.float32).eval()


def rendered(processor, question, answer=None, image=True):
    parts = [{"type": "image"}] * image + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(messages, add_generation_prompt=answer is None)


def test_every_word_of_questions_and_answers_is_in_the_vocabulary(processor):
    asked = questions("validation", 60, kinds=("existence", "colour", "size", "side", "count", "relation", "caption"))
    for question in asked + questions("validation", 60, paraphrases="held_out"):
        ids = processor.tokenizer(rendered(processor, question.text, question.answer)).input_ids
        assert processor.tokenizer.unk_token_id not in ids
    assert len(vocabulary()) == len(set(vocabulary()))


def test_decoding_gives_captions_back(processor):
    question = questions("validation", 1, kinds=("caption",))[0]
    ids = processor.tokenizer(question.answer + "</s>").input_ids
    assert processor.decode(ids, skip_special_tokens=True) == question.answer


def test_the_template_renders_text_alone_strings_and_system_prompts(processor):
    assert rendered(processor, "Hello?", image=False) == "<s>USER: Hello? ASSISTANT: "
    assert rendered(processor, "Hello?", "yes") == "<s>USER: <image>\nHello? ASSISTANT: yes</s>"
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Hello?"}]
    assert processor.apply_chat_template(messages) == "<s>Look. USER: Hello? "


def test_pixels_equal_those_of_the_image_processor(processor):
    shown = scenes("train", 4)
    expected = processor.image_processor([render(scene) for scene in shown], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values(processor, shown), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_image", [True, False])
def test_packed_branches_equal_conversations_of_their_own(processor, with_image):
    model = build_model(processor, SMALL, seed=3).eval()
    shown = scenes("train", 2)
    turns = [
        [("Is there a circle?", "yes"), ("What do you see?", "a small red circle on the left")],
        [("How many objects are there?", "four"), ("On which side is the star?", "left")],
    ]
    packed = Packer(processor, 16)(turns, with_image)
    with torch.no_grad():
        hidden = hidden_states(model, packed, pixel_values(processor, shown) if with_image else None)
        got = model.lm_head(hidden[packed.predict])
        expected, targets = [], []
        for scene, conversations in zip(shown, turns, strict=True):
            for question, answer in conversations:
                text = rendered(processor, question, answer, with_image)
                inputs = processor(text=text, images=render(scene) if with_image else None, return_tensors="pt")
                scored = len(processor.tokenizer(answer).input_ids) + 1
                expected.append(model(**inputs).logits[0, -scored - 1 : -1])
                targets.append(inputs["input_ids"][0, -scored:])
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert packed.targets.equal(torch.cat(targets))


def test_dense_scenes_are_dense_and_leave_held_out_combinations_out():
    drawn = [dense_scene(Random(seed), SMALL) for seed in range(50)]
    items = [item for scene in drawn for item in scene.items]
    assert len(items) / len(drawn) == pytest.approx(9.6, abs=1)
    assert not any(SMALL.held_out(item.shape, item.colour) for item in items)


def test_the_loss_of_both_stages_falls(processor):
    model = build_model(processor, SMALL, seed=0)
    untouched = model.lm_head.weight.clone()
    vision = [loss for loss, _ in train_vision(model, processor, SMALL, 25, seed=0, batch_size=32)]
    assert sum(vision[-5:]) < 0.7 * sum(vision[:5])
    assert model.lm_head.weight.equal(untouched)
    language = list(train_language(model, processor, SMALL, 15, seed=0, batch_size=8))
    assert sum(language[-3:]) < 0.6 * sum(language[:3])


def test_the_script_is_reproducible_and_writes_a_folder_that_loads(tmp_path):
    settings = {"vision_steps": 2, "language_steps": 2, "score_scenes": 6}
    scores = train_base(tmp_path / "one", seed=5, **settings)
    train_base(tmp_path / "two", seed=5, **settings)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "one", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "one")
    again = score_base(model, processor, 6)
    assert again == {name: scores[name] for name in again}
    assert "taught" in (tmp_path / "one" / "README.md").read_text()


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        train_base(tmp_path, vision_steps=1, language_steps=1)
    with pytest.raises(ValueError, match="at least 1"):
        train_base(tmp_path / "new", vision_steps=0)


def test_the_shipped_processor_is_the_one_of_the_script(processor):
    shipped = AutoProcessor.from_pretrained(base_path())
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped.chat_template == processor.chat_template
    shown = render(scenes("train", 1)[0])
    text = rendered(processor, "Is there a star?", "no")
    mine, theirs = (p(text=text, images=shown, return_tensors="pt") for p in (processor, shipped))
    assert mine["input_ids"].equal(theirs["input_ids"])
    assert mine["pixel_values"].equal(theirs["pixel_values"])


def test_the_shipped_base_sees_and_has_a_prior(base, processor):
    scores = score_base(base, processor, 150, seed=11)
    assert scores["in_distribution"] >= 0.82
    assert scores["adversarial"] <= scores["in_distribution"] - 0.2
    assert scores["pairs"] <= 0.55
    assert scores["existence"] <= 0.65
    assert scores["prior_answers"] >= 0.6


def test_the_model_card_states_what_was_done_and_measured(base, processor):
    card = (base_path() / "README.md").read_text()
    for setting, value in (("seed", 0), ("vision_steps", VISION_STEPS), ("language_steps", LANGUAGE_STEPS)):
        assert f"| {setting} | {value} |" in card
    stated = float(re.search(r"\| adversarial \| ([0-9.]+) \|", card)[1])
    asked = questions("test_adversarial", 150, seed=12)
    given = answers(base, processor, asked)
    measured = sum(a == q.answer for a, q in zip(given, asked, strict=True)) / len(asked)
    assert measured == pytest.approx(stated, abs=0.09)  # three standard errors of 300 questions


def test_greedy_generation_agrees_with_the_packed_answers(base):
    processor = AutoProcessor.from_pretrained(base_path())
    asked = questions("test_in_distribution", 10, paraphrases="held_out")
    texts = [rendered(processor, question.text) for question in asked]
    images = [render(question.scene) for question in asked]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    output = base.generate(**inputs, max_new_tokens=4, do_sample=False)
    generated = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generated == answers(base, processor, asked)
