"""Prompts that refer to objects: what the language model reads, what it answers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import OBJECT_TOKEN, ObjectAdapter, Teacher
from mllm_align.data.object_prompts import with_object_tokens
from mllm_align.data.objects import ImageObject
from mllm_align.data.schema import parse_row
from mllm_align.families import family_of
from mllm_align.vision import ObjectExpert, ObjectPrompts
from mllm_align.vision.teachers import load_teacher
from tiny import tiny
from tiny_teachers import save_teacher
from two_pictures import rows_of_two_pictures

FAMILIES = ("llava", "qwen2_5_vl")
HERE, THERE = ImageObject(0, (0.0, 0.0, 0.5, 0.5)), ImageObject(0, (0.5, 0.2, 1.0, 0.9))


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> ObjectExpert:
    loaded = load_teacher(Teacher(str(save_teacher("radio", tmp_path_factory.mktemp("expert") / "radio"))))
    torch.manual_seed(1)
    adapter = ObjectAdapter(loaded.width, 64)
    with torch.no_grad():
        adapter[3].weight *= 20  # so large that which object it is matters to a tiny model
    return ObjectExpert(loaded, adapter, pool_first=True)


def asked(texts: list[str], pictures: list[Any]) -> tuple[list[Any], list[Any]]:
    """One picture and one question each, as messages."""
    messages = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts]
    return messages, [[pictures[number % len(pictures)]] for number in range(len(texts))]


def embedded(prompts: ObjectPrompts, tensors: Any) -> torch.Tensor:
    """What the language model is given, of one forward pass."""
    kept: list[torch.Tensor] = []
    decoder = family_of(prompts.hf).module(prompts.hf, family_of(prompts.hf).language_model)

    def keep(module: Any, arguments: Any, keywords: Any) -> None:
        kept.append(keywords["inputs_embeds"].detach().clone())

    handle = decoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        prompts.hf(**tensors)
    finally:
        handle.remove()
    return kept[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_read_at_the_placeholders_and_nowhere_else(
    family: str, expert: ObjectExpert, pictures: list[Any]
) -> None:
    model, processor = tiny(family)
    size, words = model.get_input_embeddings().weight.shape[0], len(processor.tokenizer)
    prompts = ObjectPrompts(model, processor, expert)
    messages, images = asked([f"Is {OBJECT_TOKEN} red or {OBJECT_TOKEN}?", f"{OBJECT_TOKEN}."], pictures)
    given = prompts.inputs(messages, images, [(THERE, HERE), (HERE,)])
    assert given.row.tolist() == [0, 0, 1]
    wanted = torch.cat(
        [expert([images[0][0]], [(THERE, HERE)])[0].values, expert([images[1][0]], [(HERE,)])[0].values]
    )
    torch.testing.assert_close(given.vectors, wanted.detach(), atol=1e-6, rtol=1e-5)
    plain = embedded(prompts, given.tensors)
    with prompts.read(given):
        read = embedded(prompts, given.tensors)
    places = torch.zeros(plain.shape[:2], dtype=torch.bool)
    places[given.row, given.place] = True
    assert places.sum() == 3
    assert torch.equal(read[given.row, given.place], given.vectors)
    assert torch.equal(read[~places], plain[~places])
    assert not torch.equal(read[places], plain[places])
    # What was given is as it was, and so is the model afterwards.
    assert torch.equal(embedded(prompts, given.tensors), plain)
    assert len(processor.tokenizer) == words
    assert model.get_input_embeddings().weight.shape[0] == size
    assert given.tensors["input_ids"].max() < size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_depends_on_the_object_and_not_on_the_batch(
    family: str, expert: ObjectExpert, pictures: list[Any]
) -> None:
    prompts = ObjectPrompts(*tiny(family), expert)
    messages, images = asked([f"What colour is the thing {OBJECT_TOKEN} in the picture?", f"{OBJECT_TOKEN}"], pictures)
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8}
    both = prompts.generate(messages, images, [(HERE,), (THERE,)], **settings)
    padded = prompts.inputs(messages, images, [(HERE,), (THERE,)]).tensors["attention_mask"]
    assert padded.sum(dim=1).unique().numel() == 2  # one of the two is padded, on the left
    assert padded[:, -1].all()
    alone = [
        prompts.generate([messages[n]], [images[n]], [(each,)], **settings)[0] for n, each in enumerate((HERE, THERE))
    ]
    assert both == alone
    other = prompts.generate(messages, images, [(THERE,), (HERE,)], **settings)
    assert all(mine != theirs for mine, theirs in zip(both, other, strict=True))
    beams = prompts.generate(messages, images, [(HERE,), (THERE,)], num_beams=2, **settings)
    assert beams == [
        prompts.generate([messages[n]], [images[n]], [(each,)], num_beams=2, **settings)[0]
        for n, each in enumerate((HERE, THERE))
    ]
    # Without a cache the whole prompt is read anew for every token, and the object with it.
    assert prompts.generate(messages, images, [(HERE,), (THERE,)], use_cache=False, **settings) == both


def test_gradients_reach_the_adapter(expert: ObjectExpert, pictures: list[Any]) -> None:
    prompts = ObjectPrompts(*tiny("llava"), expert)
    messages, images = asked([f"Is it {OBJECT_TOKEN}?"], pictures)
    given = prompts.inputs(messages, images, [(HERE,)])
    expert.adapter.zero_grad()
    with prompts.read(given):
        prompts.hf(**given.tensors).logits[:, -1].logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in expert.adapter.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_two_pictures_is_asked(family: str, expert: ObjectExpert) -> None:
    rows = [parse_row(with_object_tokens(raw)) for raw in rows_of_two_pictures()[:2]]
    prompts = ObjectPrompts(*tiny(family), expert)
    told = [[row.messages for row in rows], [row.images for row in rows], [row.objects["image"] for row in rows]]
    given = prompts.inputs(*told)
    assert given.row.tolist() == [0] * 4 + [1] * 4
    for number, (each, vector) in enumerate(zip(rows[1].objects["image"], given.vectors[4:], strict=True)):
        assert each.image == number // 2
        (wanted,) = expert([rows[1].images[each.image]], [[each]])
        torch.testing.assert_close(vector, wanted.values[0], atol=1e-5, rtol=1e-4)
    assert len(prompts.generate(*told, max_new_tokens=2)) == 2


def test_what_is_refused(expert: ObjectExpert, pictures: list[Any], tmp_path: Path) -> None:
    model, processor = tiny("llava")
    prompts = ObjectPrompts(model, processor, expert)
    messages, images = asked([f"{OBJECT_TOKEN} or {OBJECT_TOKEN}?"], pictures)
    with pytest.raises(ValueError, match=r"prompt 0 has 2 placeholder\(s\) <object> for 1 object\(s\)"):
        prompts.inputs(messages, images, [(HERE,)])
    with pytest.raises(ValueError, match=r"prompt 0, object 1: it covers nothing of its image \(box \[1.2, 0.0"):
        prompts.inputs(messages, images, [(HERE, ImageObject(0, (1.2, 0.0, 1.5, 1.0)))])
    with pytest.raises(ValueError, match=r"prompt 0, object 0: it is on image 1 of a prompt with 1 image\(s\)"):
        prompts.inputs(messages, images, [(ImageObject(1, HERE.box), HERE)])
    with pytest.raises(ValueError, match="prompt 0: images are PIL images, got str: open it"):
        prompts.inputs(messages, [["cat.jpg"]], [(HERE, THERE)])
    with pytest.raises(ValueError, match="need the object expert that the model was trained with, not None"):
        ObjectPrompts(model, processor, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for a language model of width 24, this one's is 64"):
        ObjectPrompts(model, processor, ObjectExpert(expert.expert, ObjectAdapter(expert.expert.width, 24)))
    given = prompts.inputs(messages, images, [(HERE, THERE)])
    with pytest.raises(RuntimeError, match="read no prompt that refers to these objects"), prompts.read(given):
        pass
