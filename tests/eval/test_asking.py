"""The key under which an answer is kept: old ones stay, and nothing that changes an answer is left out."""

from dataclasses import replace

from mllm_align_eval.asking import Asking, Voice
from mllm_align_eval.cache import content_key, image_digest
from mllm_align_eval.engine import Request


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
