"""What lmms-eval's requests become: prompts, settings, models, and answers in the order of the requests."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from batches import processed
from mllm_align.data.errors import DataError
from mllm_align.models import ModelArguments, load_model, merge_and_export
from mllm_align.vision.mixer_files import save_mixer
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.engine import ModelEngine, Request
from mllm_align_eval.items import Item
from mllm_align_eval.lmms_bridge.decoding import DEFAULT_LENGTH, Decoding
from mllm_align_eval.lmms_bridge.decoding_engine import DecodingEngine
from mllm_align_eval.lmms_bridge.loading import load
from mllm_align_eval.lmms_bridge.models import ChatModel, SimpleModel
from mllm_align_eval.lmms_bridge.prompts import of_messages, of_visuals
from tiny import save_tiny, tiny
from tiny_encoders import save_encoder

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
GREEDY = {"max_new_tokens": 6, "do_sample": False, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": ["\n\n"]}


def image(shown: Any) -> dict[str, Any]:
    return {"type": "image", "url": shown}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_an_installed_package_names_the_bridge_to_lmms_eval() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    entry = pyproject["project"]["entry-points"]["lmms_eval.models"]["mllm_align"]
    module, _, name = entry.partition(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Decoding()),
        (GREEDY, Decoding(6)),
        ({"max_gen_toks": 9, "until": "ASSISTANT:", "temperature": None}, Decoding(9, ("ASSISTANT:",))),
        ({"do_sample": True, "temperature": 0}, Decoding()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Decoding()),
        ({"temperature": 0.7}, Decoding(settings=(("do_sample", True), ("temperature", 0.7)))),
        ({"do_sample": True, "top_k": 3}, Decoding(settings=(("do_sample", True), ("top_k", 3)))),
        ({"num_beams": 5, "length_penalty": 2.0}, Decoding(settings=(("length_penalty", 2.0), ("num_beams", 5)))),
        ({"length_penalty": 2.0, "repetition_penalty": 1.2}, Decoding(settings=(("repetition_penalty", 1.2),))),
    ],
)
def test_settings_of_a_task(given: dict[str, Any], wanted: Decoding) -> None:
    assert Decoding.of(given) == wanted


def test_settings_that_are_unknown_or_make_no_sense(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert Decoding.of({"image_aspect_ratio": "pad"}) == Decoding(DEFAULT_LENGTH)
    assert [record.message for record in caplog.records if "image_aspect_ratio='pad'" in record.message] != []
    assert len(caplog.records) == 1
    for given in ({"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"until": [3]}):
        with pytest.raises(ValueError, match="must be"):
            Decoding.of(given)


def test_an_answer_ends_before_the_first_stop() -> None:
    assert Decoding(until=("User:", "\n")).cut("a red star \nUser: and?") == "a red star"
    assert Decoding(until=("User:",)).cut("a red star") == "a red star"


def test_images_stay_where_a_task_puts_them() -> None:
    turns = [
        {"role": "system", "content": [words("Be brief.")]},
        {"role": "user", "content": [words("First"), image(RED), words("then"), image("blue.png")]},
    ]
    request = of_messages(turns, ("yes", "no"))
    assert request.images == (RED, "blue.png")
    assert request.choices == ("yes", "no")
    kinds = [[part["type"] for part in turn["content"]] for turn in request.prompt]  # type: ignore[index]
    assert kinds == [["text"], ["text", "image", "text", "image"]]


def test_placeholders_in_the_text_are_the_places_where_there_is_one_for_each_image() -> None:
    placed = of_visuals([RED, BLUE], "Is <image> like <image>?")
    assert placed.prompt == [{"role": "user", "content": "Is <image> like <image>?"}]
    model, processor = tiny("llava")
    engine = ModelEngine(model, processor)
    spelt = [words("Is "), image(RED), words(" like "), image(BLUE), words("?")]
    same = of_messages([{"role": "user", "content": spelt}])
    assert engine.generate([placed], 5) == engine.generate([same], 5)
    with pytest.raises(DataError, match="<image>"):
        engine.generate([of_visuals([RED, BLUE], "Is <image> red?")], 5)


@pytest.mark.parametrize(
    ("visual", "kind"),
    [
        ("clip.mp4", "video"),
        ({"array": [0.0], "sampling_rate": 16000}, "audio"),
        ({"type": "video", "url": "clip.mp4"}, "video"),
        (3, "int"),
    ],
)
def test_what_is_no_image_is_named(visual: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=f"'{kind}': only images and text"):
        of_visuals([visual], "What is that?")


def saved_adapter(folder: Path) -> Path:
    """An adapter that changes the demo model's answers."""
    model, _ = load_model("demo-base")
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=r".*language_model.*(q|v)_proj", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


def test_a_base_an_adapter_and_the_folder_of_a_run(tmp_path: Path) -> None:
    folder = str(saved_adapter(tmp_path / "run"))
    base, _ = load("demo-base", "", "cpu", {"dtype": "float32"})
    assert not hasattr(base, "peft_config")
    for found in (load("demo-base", folder, "cuda", {}), load(folder, None, None, {})):
        assert found[0].peft_config["default"].r == 4
    with pytest.raises(ValueError, match="an adapter itself"):
        load(folder, folder, None, {})
    with pytest.raises(ValueError, match="has no device_map, max_pixels; there are pretrained, adapter, encoders"):
        load("demo-base", None, None, {"max_pixels": 1, "device_map": "auto"})
    with pytest.raises(ValueError, match="needs pretrained"):
        load(None, None, None, {})
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base model"):
        load(folder, None, None, {})
    with pytest.raises(ValueError, match="batch_size must be a positive integer, not 'auto'"):
        ChatModel("demo-base", batch_size="auto")


@pytest.mark.parametrize("kind", ["gated", "interleave"])
def test_a_run_with_a_mixer_and_its_export(kind: str, tmp_path: Path) -> None:
    base, encoder = str(save_tiny("llava", tmp_path / "base")), save_encoder("dinov2", tmp_path / "dinov2")
    arguments = ModelArguments(base, use_peft=True, mixer={"kind": kind, "encoders": [str(encoder)]})
    model, processor = load_model(arguments, device="cpu", trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    run = str(tmp_path / "run")
    model.save_pretrained(run)
    save_mixer(model, run, processor)
    exported = str(merge_and_export(run, tmp_path / "exported", dtype="float32", device="cpu"))
    items = world_items(4, 4, 4, regimes=["adversarial"])[:4]
    requests = [chat_request(item, number, GREEDY) for number, item in enumerate(items)]

    def said(pretrained: str, **given: Any) -> list[str]:
        lm = ChatModel(pretrained, batch_size=3, **given)
        lm.task_dict = documents(items)
        return lm.generate_until(requests)

    shown = [Request(tuple(p.load() for p in item.pictures), item.prompt, ()) for item in items]
    expected = [each.text for each in ModelEngine(model, processor).generate(shown, 6)]
    moved = encoder.rename(tmp_path / "moved")
    assert said(base, adapter=run, encoders=str(moved)) == expected
    assert said(run, encoders=str(moved)) == said(exported, encoders=str(moved)) == expected
    assert said(base) != expected
    with pytest.raises(ValueError, match="has 1 further encoders, 2 given"):
        load(base, run, "cpu", {"encoders": f"{moved};{moved}"})


def documents(items: list[Item]) -> dict[str, Any]:
    """As lmms-eval keeps them: by task and split."""
    return {"world": {"test": [{"item": item} for item in items]}}


def messages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    item = document["item"]
    shown = [image(picture.load()) for picture in item.pictures]
    return [{"role": "user", "content": [*shown, words(item.prompt)]}]


def chat_request(item: Item, number: int, settings: dict[str, Any], read: Callable = messages_of) -> SimpleNamespace:
    return SimpleNamespace(args=(item.prompt, read, settings, number, "world", "test"))


def chat_model(items: list[Item], **arguments: Any) -> ChatModel:
    model = ChatModel("demo-base", **arguments)
    model.task_dict = documents(items)
    return model


def test_answers_are_the_engine_s_own_in_the_order_of_the_requests() -> None:
    items = world_items(6, 6, 6, regimes=["adversarial"])[:14]
    # One without a picture in the same batch, and other settings for every third.
    items[4] = Item("bare", "world", "", "", "", "Is there a red star?", ())
    settings = [{"max_new_tokens": 1} if number % 3 == 0 else GREEDY for number in range(len(items))]
    lm = chat_model(items, batch_size=5)
    requests = [chat_request(item, number, settings[number]) for number, item in enumerate(items)]
    order = [*range(7, 14), *range(7), 3]
    found = lm.generate_until([requests[number] for number in order])
    engine = ModelEngine(*load_model("demo-base"))
    shown = [Request(tuple(p.load() for p in item.pictures), item.prompt, ()) for item in items]
    alone = [
        engine.generate([request], own["max_new_tokens"])[0].text for request, own in zip(shown, settings, strict=True)
    ]
    assert found == [alone[number] for number in order]
    assert len(set(found)) > 2


def test_a_document_that_fails_is_named_and_its_neighbours_are_asked_first() -> None:
    items = world_items(4, 4, 4, regimes=["adversarial"])[:4]
    lm = chat_model(items, batch_size=4)

    def read(document: dict[str, Any]) -> list[dict[str, Any]]:
        turns = messages_of(document)
        return turns if document["item"] is not items[2] else [{"role": "assistant", "content": [words("hm")]}]

    with pytest.raises(ValueError, match=r"world, split 'test', document 2: .*must end with a user turn"):
        lm.generate_until([chat_request(item, number, GREEDY, read) for number, item in enumerate(items)])
    video = [{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}]
    with pytest.raises(ValueError, match="document 1: it has a part of type 'video'"):
        lm.generate_until([chat_request(items[1], 1, GREEDY, lambda document: video)])


def test_what_the_interfaces_do_not_offer_is_said() -> None:
    lm = chat_model([])
    with pytest.raises(NotImplementedError, match="--force_simple"):
        lm.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        lm.generate_until_multi_round([])


def test_choices_have_the_mean_loss_of_their_tokens_in_the_order_of_the_requests() -> None:
    items = [item for item in world_items(8, 8, 8, regimes=["adversarial"]) if len(item.choices) > 2][:5]
    lm = SimpleModel("demo-base", batch_size=2)
    lm.task_dict = documents(items)

    def visuals(document: dict[str, Any]) -> list[Image.Image]:
        return [picture.load() for picture in document["item"].pictures]

    asked = [(number, choice) for number, item in enumerate(items) for choice in item.choices][::-1]
    requests = [
        SimpleNamespace(args=(items[number].prompt, f" {choice}", visuals, number, "world", "test"))
        for number, choice in asked
    ]
    found = {one: result.text for one, result in zip(asked, lm.loglikelihood(requests), strict=True)}
    engine = ModelEngine(*load_model("demo-base"))
    for number, item in enumerate(items):
        request = Request(tuple(picture.load() for picture in item.pictures), item.prompt, item.choices)
        said = engine.generate([request], 8)[0].text
        for choice, score in zip(item.choices, engine.choice_logps([request])[0], strict=True):
            loss, is_greedy = found[number, choice]
            length = len(lm.engine.processor.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]) + 1
            assert loss == pytest.approx(-score / length, rel=1e-4)
            assert is_greedy == (said == choice)
    assert any(is_greedy for _, is_greedy in found.values())
    with pytest.raises(ValueError, match="acc_mutual_info"):
        lm.loglikelihood([SimpleNamespace(args=("", "yes"))])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_beams_equal_the_model_s_own_and_samples_differ(family: str, pictures: list[Image.Image]) -> None:
    model, processor = tiny(family)
    engine = DecodingEngine(model, processor)
    asked = [Request((pictures[0],), "Is the star red?", ()), Request((pictures[1],), "Is the small star blue?", ())]
    texts = engine.answer(asked, Decoding.of({"max_new_tokens": 6, "num_beams": 3}))
    for request, text in zip(asked, texts, strict=True):
        chat = [{"role": "user", "content": [{"type": "image"}, words(request.prompt)]}]
        inputs = processed(processor, processor.apply_chat_template(chat, add_generation_prompt=True), request.images)
        ids = model.generate(**inputs, do_sample=False, num_beams=3, max_new_tokens=6)
        own = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == own.strip()
    hot = Decoding.of({"max_new_tokens": 6, "temperature": 5.0})
    assert engine.answer(asked, hot) != engine.answer(asked, hot)
