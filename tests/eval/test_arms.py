import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from eval_items import item
from mllm_align_eval.arms import Arm, active_arm, fingerprint, identity_of
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.runner import AnswerErrors, answer, answer_arms
from tiny import tiny

TARGETS = r"model\.language_model\..*(q|v)_proj"


def fill(model, adapter, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5


@pytest.fixture
def adapted():
    """A tiny model with two trained adapters (one with a trained projector), and its processor."""
    base, processor = tiny("llava")
    saved = ["model.multi_modal_projector"]
    model = get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS, modules_to_save=saved), "aligned")
    model.add_adapter("control", LoraConfig(r=2, target_modules=TARGETS))
    fill(model, "aligned", 1)
    fill(model, "control", 2)
    return model.eval(), processor


def questions(pictures):
    return [
        item(f"i{n}", "red", choices=("red", "blue"), prompt="What colour is it?", load=lambda n=n: pictures[n])
        for n in range(4)
    ]


def test_arms_are_the_models_that_they_name(adapted, pictures):
    model, processor = adapted
    asked = questions(pictures)
    arms = [Arm("base"), Arm("control", "control"), Arm("aligned", "aligned")]
    settings = {"images": ("right",), "show_progress": False, "batch_size": 2}
    found = answer_arms(model, processor, asked, arms, **settings)
    plain, _ = tiny("llava")
    alone = answer(plain, processor, asked, method="logprob")
    assert [entry.scores for entry in found["base"]["logprob", "right"]] == [entry.scores for entry in alone]
    scores = {tuple(entry.scores for entry in given["logprob", "right"]) for given in found.values()}
    assert len(scores) == 3
    for arm in arms:
        with active_arm(model, arm):
            single = answer(model, processor, asked, method="generate")
        assert [entry.text for entry in single] == [entry.text for entry in found[arm.name]["generate", "right"]]


def test_an_arm_leaves_the_model_as_it_was(adapted):
    model, _ = adapted
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for arm in (Arm("base"), Arm("control", "control"), Arm("aligned", "aligned")):
        with active_arm(model, arm):
            pass
        assert model.active_adapter == "aligned"
        assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_an_unknown_adapter(adapted):
    with pytest.raises(ValueError, match="no adapter 'x'"), active_arm(adapted[0], Arm("x", "x")):
        pass


def test_an_adapter_that_does_nothing_is_refused(pictures):
    base, processor = tiny("llava")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS))  # B is zero: as good as not trained
    with pytest.raises(ValueError, match="adapter 'default' changes nothing"):
        answer_arms(
            model, processor, questions(pictures), [Arm("base"), Arm("aligned", "default")], show_progress=False
        )


def descriptions(pictures):
    return [replace(each, choices=(), answer="", prompt="Describe it.") for each in questions(pictures)]


def test_an_adapter_that_does_nothing_is_refused_where_all_is_described(pictures):
    base, processor = tiny("llava")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS)).eval()
    arms, settings = [Arm("base"), Arm("mine", "default")], {"images": ("right",), "show_progress": False}
    with pytest.raises(ValueError, match="adapter 'default' changes nothing"):
        answer_arms(model, processor, descriptions(pictures), arms, **settings)
    # One that moves no word of the greedy texts is still an adapter.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1e-5)
    found = answer_arms(model, processor, descriptions(pictures), arms, **settings)
    base_texts, texts = ([a.text for a in found[arm.name]["generate", "right"]] for arm in arms)
    assert texts == base_texts


def test_arms_share_a_cache_without_mixing(adapted, pictures, tmp_path):
    model, processor = adapted
    arms = [Arm("base"), Arm("aligned", "aligned")]
    settings = {"show_progress": False, "cache": AnswerCache(tmp_path / "a.jsonl")}
    first = answer_arms(model, processor, questions(pictures), arms, **settings)
    stored = len(settings["cache"])
    # Four pictures and their blanks; without an image it is one question; another image is known already.
    assert stored == 2 * 2 * (4 + 4 + 1)
    assert answer_arms(model, processor, questions(pictures), arms, **settings) == first
    assert len(settings["cache"]) == stored
    fill(model, "aligned", 3)
    again = answer_arms(model, processor, questions(pictures), arms, **settings)
    assert again["base"] == first["base"]
    assert again["aligned"] != first["aligned"], "a retrained adapter of the same name is another model"


def test_errors_of_all_arms_are_counted(adapted, pictures):
    model, processor = adapted

    def missing():
        raise OSError("gone")

    asked = [*questions(pictures), item("bad", load=missing)]
    # Both methods of two arms.
    with pytest.raises(AnswerErrors, match="4 of 20 items"):
        answer_arms(
            model, processor, asked, [Arm("base"), Arm("a", "aligned")], images=("right",), show_progress=False
        )


def test_fingerprints(adapted):
    model, _ = adapted
    base, _ = tiny("llava")
    prints = [fingerprint(model), fingerprint(model, "aligned"), fingerprint(model, "control")]
    assert len(set(prints)) == 3
    assert prints == [fingerprint(copy.deepcopy(model), arm) for arm in (None, "aligned", "control")]
    changed, _ = tiny("llava")
    changed.get_output_embeddings().weight.data[0] += 1
    assert fingerprint(changed) != fingerprint(base)
    assert fingerprint(base.to(torch.bfloat16)) != fingerprint(changed)
    assert fingerprint(tiny("llava", quantized=True)[0]) != fingerprint(tiny("llava")[0])


def test_another_processor_or_template_is_asked_anew():
    model, processor = tiny("llava")
    before = identity_of(model, processor)
    assert before == identity_of(model, copy.deepcopy(processor))
    other = copy.deepcopy(processor)
    other.chat_template += " "
    assert identity_of(model, other) != before
    wordier = copy.deepcopy(processor)
    wordier.tokenizer.add_tokens(["<new>"])
    assert identity_of(model, wordier) != before
    repeating = copy.deepcopy(model)
    repeating.generation_config.repetition_penalty = 1.5
    assert identity_of(repeating, processor) != before
    smaller = copy.deepcopy(processor)
    smaller.image_processor.do_center_crop = False
    assert identity_of(model, smaller) != before


def test_an_adapter_may_be_called_like_a_part_of_the_model():
    prints = []
    for moved in (0.0, 1.0):
        base, _ = tiny("llava")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="model")
        model.get_base_model().get_input_embeddings().weight.data[0] += moved
        prints.append(fingerprint(model))
    assert prints[0] != prints[1]


def test_the_scaling_of_an_adapter_is_part_of_it(adapted):
    model, _ = adapted
    before = fingerprint(model, "aligned")
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict) and "aligned" in module.scaling:
            module.scaling["aligned"] *= 2
    assert fingerprint(model, "aligned") != before
