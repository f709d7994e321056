import pytest
import torch

from batches import processed
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
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
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
