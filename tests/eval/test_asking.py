"""The key under which an answer is kept: old ones stay, and nothing that changes an answer is left out."""

from dataclasses import replace

import pytest
from PIL import Image

from eval_items import StubEngine, item
from mllm_align_eval.asking import Asking, Voice, batches_of
from mllm_align_eval.cache import content_key, image_digest
from mllm_align_eval.engine import Request
from mllm_align_eval.runner import answer


def key(request: Request) -> str:
    asking = Asking(None, "right", "generate", 8, None, 4, 0, "raise", None)
    return asking._key(Voice("base", "identity", None), request)


def test_a_key_is_of_what_it_always_was(pictures):
    parts = {
        "model": "identity",
        "method": "generate",
        "max_new_tokens": 8,
        "prompt": "Is it?",
        "choices": ("yes", "no"),
        "images": [image_digest(pictures[0])],
    }
    assert key(Request((pictures[0],), "Is it?", ("yes", "no"))) == content_key(parts)


def test_start_and_system_prompt_have_keys_of_their_own(pictures):
    plain = Request((pictures[0],), "Is it?", ())
    keys = {key(plain), key(replace(plain, start="It is")), key(replace(plain, system="It is"))}
    assert len(keys) == 3


def test_batches_are_of_like_length_and_one_picture_stays_together() -> None:
    asked = [item(f"i{n}", prompt="x" * (1 + 100 * (n % 2)), cluster=f"c{n % 3}") for n in range(12)]
    asked += [replace(item("bare"), pictures=())]
    batches = batches_of(asked, 4)
    assert sorted(index for batch in batches for index in batch) == list(range(13))
    assert batches[-1] == [12], "a question about no picture is asked apart"
    lengths = [[len(asked[index].prompt) for index in batch] for batch in batches[:-1]]
    assert sum(len(set(each)) > 1 for each in lengths) <= 1
    clusters = [asked[index].cluster for batch in batches[:-1] for index in batch if len(asked[index].prompt) == 1]
    assert clusters == sorted(clusters)


def test_a_blank_picture_is_grey_and_of_the_same_size() -> None:
    engine = StubEngine(lambda request: "yes")
    asked = [item("a", load=lambda: Image.new("RGB", (9, 5), "red"))]
    answer(None, None, asked, engine=engine, identity="stub", method="logprob", image="blank")
    (shown,) = engine.asked[0].images
    assert shown.size == (9, 5)
    assert shown.getcolors() == [(45, (127, 127, 127))]


def test_open_questions_are_kept_as_they_are() -> None:
    asked = [replace(item(name), choices=(), answer="") for name in ("a", "b")]
    engine = StubEngine(lambda request: "")
    found = answer(None, None, asked, engine=engine, identity="stub")
    assert [(entry.text, entry.state, entry.right) for entry in found] == [("", "invalid", False)] * 2
    with pytest.raises(ValueError, match="fewer than two choices"):
        answer(None, None, asked, engine=engine, identity="stub", method="logprob")
