from dataclasses import replace

import pytest
import torch

from batches import plain_call, processed
from mllm_align.contract import Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align_eval.engine import ModelEngine, Request
from tiny import FAMILIES, tiny

PROMPTS = ("Is the star red?", "What colour is the small circle left of the square?", "Is it?")


def requests(pictures, with_image=True):
    shown = [pictures[0], pictures[1], pictures[0]] if with_image else [None] * 3
    return [
        Request((image,) if image else (), prompt, ("red", "not red, blue", "yes"))
        for image, prompt in zip(shown, PROMPTS, strict=True)
    ]


def plain_inputs(processor, request):
    parts = [{"type": "image"} for _ in request.images] + [{"type": "text", "text": request.prompt}]
    messages = [{"role": "user", "content": parts}]
    if request.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": request.system}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    tokenizer = processor.tokenizer
    if tokenizer.bos_token and tokenizer("").input_ids == [tokenizer.bos_token_id]:
        text = text.removeprefix(tokenizer.bos_token)
    return processed(processor, text, request.images)


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_the_model_s_own_one_by_one(family, with_image, pictures):
    model, processor = tiny(family)
    asked = requests(pictures, with_image)
    found = ModelEngine(model, processor).generate(asked, 6)
    for request, generated in zip(asked, found, strict=True):
        inputs = plain_inputs(processor, request)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist()
        eos = processor.tokenizer.eos_token_id
        kept = ids[: ids.index(eos)] if eos in ids else ids
        assert generated.text == processor.tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert generated.truncated == (eos not in ids)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_choices_are_scored_alike_alone_and_in_a_batch(family, pictures):
    model, processor = tiny(family)
    engine = ModelEngine(model, processor)
    together = engine.choice_logps(requests(pictures))
    alone = [engine.choice_logps([request])[0] for request in requests(pictures)]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-4, rtol=1e-4)
    assert [len(scores) for scores in together] == [3, 3, 3]


def test_choice_logps_equal_a_plain_forward(pictures):
    model, processor = tiny("llava")
    request = requests(pictures)[0]
    scores = ModelEngine(model, processor).choice_logps([request])[0]
    inputs = plain_inputs(processor, request)
    for choice, score in zip(request.choices, scores, strict=True):
        # LLaVA's template writes "ASSISTANT: answer" and no end of turn, which EOS then is.
        answer = processor.tokenizer(f" {choice}", add_special_tokens=False).input_ids
        ids = torch.tensor([[*answer, processor.tokenizer.eos_token_id]])
        with torch.no_grad():
            whole = torch.cat([inputs["input_ids"], ids], dim=1)
            logits = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0].double()
        steps = logits[inputs["input_ids"].shape[1] - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(steps.gather(1, ids[0, :, None]).sum().item(), abs=1e-4)


def test_generation_stops_at_the_limit(pictures):
    model, processor = tiny("llava")
    (generated,) = ModelEngine(model, processor).generate(requests(pictures)[:1], 1)
    assert len(processor.tokenizer(generated.text, add_special_tokens=False)["input_ids"]) <= 1


def test_training_mode_is_restored(pictures):
    model, processor = tiny("llava")
    model.train()
    ModelEngine(model, processor).choice_logps(requests(pictures)[:1])
    assert model.training


ANSWER, START = "The small circle is red.", "The small circle"


def collated_ids(model, processor, request, response):
    """The tokens of a response as training scores them."""
    view = View("image" if request.images else None, "chosen")
    engine = ModelEngine(model, processor)
    collator = AlignCollator(
        processor, lambda source: Needs(views=(view,)), engine.family.image_keys, engine.family.token_keys
    )
    row = {"images": list(request.images), "prompt": request.prompt, "chosen": response}
    return collator([row])["batch"].branches[0].token_ids


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_continued_behind_the_tokens_that_training_would_score(family, with_image, pictures):
    model, processor = tiny(family)
    asked = [replace(request, start=START) for request in requests(pictures, with_image)[:2]]
    asked.append(replace(asked[0], start=""))  # in one batch with answers from the beginning
    found = ModelEngine(model, processor).generate(asked, 4)
    for request, generated in zip(asked[:2], found, strict=False):
        scored = collated_ids(model, processor, request, ANSWER)
        size = next(n for n in range(len(scored)) if processor.tokenizer.decode(scored[:n]).strip() == START)
        ids = scored[:size]
        for _ in range(4):
            _, hidden = plain_call(model, plain_inputs(processor, request), torch.cat([ids, ids[:1]]))
            following = model.get_output_embeddings()(hidden[-1]).argmax()[None]
            if following == processor.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following])
        whole = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert START + generated.text == whole
    assert found[2] == ModelEngine(model, processor).generate(asked[2:], 4)[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_white_space_behind_a_start_is_the_model_s_and_not_doubled(family, pictures):
    model, processor = tiny(family)
    plain, spaced = (replace(requests(pictures)[0], start=start) for start in (START, START + " "))
    one, other = ModelEngine(model, processor).generate([plain, spaced], 4)
    assert other.text == one.text.lstrip()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_system_prompt_is_read(family, pictures):
    model, processor = tiny(family)
    request = replace(requests(pictures)[0], system="What is the white triangle below the star?")
    (generated,) = ModelEngine(model, processor).generate([request], 4)
    inputs = plain_inputs(processor, request)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :].tolist()
    eos = processor.tokenizer.eos_token_id
    kept = ids[: ids.index(eos)] if eos in ids else ids
    assert generated.text == processor.tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_what_an_engine_cannot_do_is_refused(pictures):
    engine = ModelEngine(*tiny("llava"))
    own, bare = requests(pictures)[0], requests(pictures, False)[0]
    with pytest.raises(ValueError, match="whole answers"):
        engine.choice_logps([replace(own, start="The")])
    with pytest.raises(ValueError, match="throughout or not at all"):
        engine.generate([own, bare], 2)
